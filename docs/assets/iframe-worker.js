// Browsers start no Worker in a page that was opened from a file, and the search runs in one.  There it gets a hidden
// frame with the same script instead, with a Worker's two ways to talk: postMessage, and message events.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.addEventListener("load", () => this.begin(frame.contentWindow, String(url)), { once: true });
      frame.srcdoc = "<!doctype html><title>search</title>";
      // once only: a frame that is moved loads anew
      document.documentElement.append(frame);
    }

    begin(inside, url) {
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      // what the worker's script asks for is loaded one behind the other
      inside.importScripts = (...urls) => urls.reduce((last, next) => last.then(() => load(inside, next)), Promise.resolve());
      load(inside, url).then(() => {
        this.inside = inside;
        this.waiting.forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };

  function load(inside, url) {
    return new Promise((resolve, reject) => {
      const script = inside.document.createElement("script");
      script.src = url;
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${url} cannot be loaded`));
      inside.document.head.append(script);
    });
  }
}
