// What a reload must not lose, in this browser. One that keeps nothing, or has no room left, is no reason to fail.

const PREFIX = "reftune.";

export function kept(name, otherwise) {
  try {
    const found = JSON.parse(localStorage.getItem(PREFIX + name));
    return found === null ? otherwise : { ...otherwise, ...found };
  } catch {
    return otherwise;
  }
}

/** Whether it is kept. */
export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function keepKey(key) {
  try {
    sessionStorage.setItem(`${PREFIX}key`, key);
  } catch {
    /* it is asked for again */
  }
}

export function keptKey() {
  try {
    return sessionStorage.getItem(`${PREFIX}key`);
  } catch {
    return null;
  }
}
