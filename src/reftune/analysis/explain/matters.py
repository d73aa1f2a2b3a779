"""What of an adapter matters: what its answers lose when a layer, a position or a row of the rank is switched off, the
fewest layers that keep most of it, and what one edit does alone.

All is measured by the log-likelihood of the answers, in nats, summed over texts: the effect of an adapter is what it
adds to that of the base, and shares are of this.  Beside it stands by how much all next tokens differ from the
adapter's, Σ KL(adapter ‖ with a part off) over the tokens of the answers; where an adapter does not make the answers
likelier, this decides.

Must not know: pictures, files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...errors import ReftuneError
from .probe import Probe
from .switches import EVERY, NONE, Switch, Text

__all__ = ["KINDS", "patch", "smallest_set", "switched_off"]

KINDS = ("layers", "positions", "rows")
Report = Callable[[int], None]


def _scores(probe: Probe, text: Text, switches: Sequence[Switch]) -> list[tuple[float, float]]:
    """For the base, the adapter and each switch: (log-likelihood of the answer, Σ KL(adapter ‖ this))."""
    with probe.keeping():
        log_p = probe.logits(text, [EVERY])[0][:-1].log_softmax(-1)
        p = log_p.exp()

        def score(logits: Tensor) -> tuple[float, float]:
            log_q = logits[:-1].log_softmax(-1)
            distance = (p * (log_p - log_q)).sum(-1).clamp(min=0).sum()
            return probe.log_likelihood(text, logits), float(distance)

        return probe.each(text, [NONE, EVERY, *switches], score)


def switched_off(
    probe: Probe, texts: Sequence[Text], *, kinds: Sequence[str] = KINDS, progress: Report | None = None
) -> dict[str, Any]:
    """The log-likelihood of the answers by base and adapter, the `kl` between them, and rows of each kind.

    A row: what is off (`layer`; `position`; `site`, `phi` and `row`), `loss` in nats, `share` of the effect, `kl`.
    They are sorted by loss, or by `kl` where there is no effect to have a share of.  A layer is all of its sites, a
    position all that layers edit there, in those texts that have it.
    """
    makers = {"layers": _layers_off, "positions": _positions_off, "rows": _rows_off}
    found: dict[str, Any] = {"tokens": sum(len(text.answer) for text in texts)}
    base = full = distance = 0.0
    rows: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {kind: {} for kind in kinds}
    for done, text in enumerate(texts, start=1):
        parts = [(kind, *part) for kind in kinds for part in makers[kind](probe, text)]
        (without, apart), (whole, _), *left = _scores(probe, text, [switch for *_, switch in parts])
        base, full, distance = base + without, full + whole, distance + apart
        for (kind, what, _), (value, moved) in zip(parts, left, strict=True):
            row = rows[kind].setdefault(tuple(what.values()), {**what, "loss": 0.0, "kl": 0.0})
            row["loss"] += whole - value
            row["kl"] += moved
        if progress is not None:
            progress(done)
    found |= {"base": base, "adapter": full, "kl": distance}
    for kind in kinds:
        shared = [{**row, "share": _share(row["loss"], full - base)} for row in rows[kind].values()]
        found[kind] = sorted(shared, key=lambda row: -row["loss" if full > base else "kl"])
    return found


def _share(value: float, effect: float) -> float | None:
    """None where the adapter does not make the answers likelier: there is nothing to have a share of."""
    return value / effect if effect > 0 else None


def _of_layers(probe: Probe, layers: Sequence[int]) -> Switch:
    return Switch(sites=frozenset(site.name for site in probe.sites if site.layer in layers))


def _layers_off(probe: Probe, text: Text) -> list[tuple[dict[str, Any], Switch]]:
    layers = probe.layers
    return [({"layer": layer}, _of_layers(probe, [other for other in layers if other != layer])) for layer in layers]


def _positions_off(probe: Probe, text: Text) -> list[tuple[dict[str, Any], Switch]]:
    labels, columns = probe.labels(text), probe.edited_columns(text)
    return [({"position": labels[column]}, Switch(columns=frozenset(columns) - {column})) for column in columns]


def _rows_off(probe: Probe, text: Text) -> list[tuple[dict[str, Any], Switch]]:
    return [
        ({"site": site.name, "phi": number, "row": row}, Switch(without=(site.name, number, row)))
        for site in probe.sites
        for number, phi in enumerate(probe.phis(site))
        if phi.has_subspaces
        for row in range(phi.options.r)
    ]


def smallest_set(
    probe: Probe, texts: Sequence[Text], *, keep: float = 0.9, progress: Report | None = None
) -> dict[str, Any]:
    """A small set of layers whose edits alone keep `keep` of the effect, found greedily.

    The layer that adds most is taken until they are enough; then those are left out again that are not needed.  Greedy
    sets need not be the smallest there are.  Returns `layers`, `share`, `measure` and `steps`: each layer taken with
    the share that there was then.  `measure` is "likelihood", or "kl" where the adapter does not make the answers
    likelier; a share is then 1 − KL(adapter ‖ set) / KL(adapter ‖ base).

    Raises:
        ReftuneError: the adapter changes nothing, or `keep` is no share.
    """
    if not 0 < keep <= 1:
        raise ReftuneError(f"keep={keep!r} is not a share of the effect; use a number above 0, at most 1")
    with probe.keeping():
        return _smallest_set(probe, texts, keep, progress)


def _smallest_set(probe: Probe, texts: Sequence[Text], keep: float, progress: Report | None) -> dict[str, Any]:
    (base, apart), (full, _), *_ = _totals(probe, texts, [])
    likelier = full > base
    if not likelier and apart <= 0:
        raise ReftuneError("the adapter changes no next token of these answers, so no layers can keep a part of that")

    def shares(sets: Sequence[Sequence[int]]) -> list[float]:
        found = _totals(probe, texts, [_of_layers(probe, layers) for layers in sets])[2:]
        return [(value - base) / (full - base) if likelier else 1 - moved / apart for value, moved in found]

    chosen: list[int] = []
    steps: list[dict[str, Any]] = []
    share = 0.0
    while share < keep and len(chosen) < len(probe.layers):
        rest = [layer for layer in probe.layers if layer not in chosen]
        found = shares([[*chosen, layer] for layer in rest])
        best = max(range(len(rest)), key=lambda i: found[i])
        chosen.append(rest[best])
        share = found[best]
        steps.append({"layer": rest[best], "share": share})
        if progress is not None:
            progress(len(chosen))
    if progress is not None:
        progress(len(probe.layers))
    for layer in list(chosen)[:-1]:
        fewer = [other for other in chosen if other != layer]
        left = shares([fewer])[0]
        if left >= keep:
            chosen, share = fewer, left
    measure = "likelihood" if likelier else "kl"
    return {"layers": sorted(chosen), "share": share, "keep": keep, "measure": measure, "steps": steps}


def _totals(probe: Probe, texts: Sequence[Text], switches: Sequence[Switch]) -> list[tuple[float, float]]:
    """`_scores` summed over texts."""
    every = zip(*(_scores(probe, text, switches) for text in texts), strict=True)
    return [(sum(value for value, _ in pairs), sum(moved for _, moved in pairs)) for pairs in every]


def patch(probe: Probe, text: Text) -> dict[str, Any]:
    """What each edit does alone: the share of the effect that is there when only this site edits, at this token only.

    `share` is [site][column of `columns`], None where the site does not edit the token, or where there is no effect;
    `gain` is the same in nats.  `alone` has the share of each token with all its sites on.
    """
    columns = probe.edited_columns(text)
    places = [(site, column) for site in probe.sites for column in probe.columns(site, text)]
    switches = [Switch(sites=frozenset([site.name]), columns=frozenset([column])) for site, column in places]
    switches += [Switch(columns=frozenset([column])) for column in columns]
    base, full, *found = probe.log_likelihoods(text, [NONE, EVERY, *switches])
    gain = {
        (site.name, column): value - base for (site, column), value in zip(places, found[: len(places)], strict=True)
    }
    labels = probe.labels(text)
    rows = [[gain.get((site.name, column)) for column in columns] for site in probe.sites]
    return {
        "sites": [site.name for site in probe.sites],
        "columns": columns,
        "positions": [labels[column] for column in columns],
        "tokens": [text.pieces[column] for column in columns],
        "gain": rows,
        "share": [[None if cell is None else _share(cell, full - base) for cell in row] for row in rows],
        "alone": [_share(value - base, full - base) for value in found[len(places) :]],
    }
