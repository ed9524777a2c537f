"""Table, plot and verdicts of benchmarks/mtp_loss.py."""

from __future__ import annotations

from typing import Any, Final

import results_page

TITLES: Final = {
    "plugin": "plugin, in the model", "verl": "verl's patch, in the model",
    "plugin_alone": "chunked loss alone", "plain_alone": "full logits alone",
}  # fmt: skip
#: Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS: Final = {"plugin": "#0072B2", "verl": "#D55E00", "plugin_alone": "#009E73", "plain_alone": "#CC79A7"}
GIB = 1024


class Found:
    """The cells of one release by size, mask and contender."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.releases = list(document["releases"])
        self.cells = {(c["megatron_core"], c["tokens"], c["fraction"], c["who"]): c for c in document["cells"]}

    def get(self, who: str, tokens: int, fraction: float, what: str, release: str | None = None) -> float | None:
        value = self.cells.get((release or self.releases[0], tokens, fraction, who), {}).get(what)
        return None if value is None else float(value)

    def text(self, who: str, tokens: int, fraction: float = 1.0, release: str | None = None) -> str:
        """Why there is no number."""
        error = str(self.cells.get((release or self.releases[0], tokens, fraction, who), {}).get("error", "-"))
        return error if len(error) < 20 else "error"

    def ratio(self, what: str, tokens: int, fraction: float, release: str | None = None, a: str = "verl",
              b: str = "plugin") -> float | None:  # fmt: skip
        top, bottom = (self.get(who, tokens, fraction, what, release) for who in (a, b))
        return top / bottom if top is not None and bottom else None

    def sizes(self, release: str | None = None) -> list[tuple[int, float]]:
        keys = {(key[1], key[2]) for key in self.cells if key[0] == (release or self.releases[0])}
        return sorted(keys, key=lambda size: (-size[1], size[0]))


def verdicts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets, what was found, and whether it meets them. What was not measured is not met."""
    found = Found(document)
    tokens = sorted({size[0] for size in found.sizes()})
    if not tokens:
        return []
    reference = 16_384 if 16_384 in tokens else tokens[len(tokens) // 2]
    result: list[dict[str, Any]] = []

    def verdict(target: str, value: float | None, met: bool) -> None:
        result.append({"target": target, "found": None if value is None else round(value, 3), "met": met})

    for who in ("plugin", "plugin_alone"):
        peak = found.get(who, reference, 1.0, "peak_mib")
        verdict(f"{TITLES[who]}: peak at {reference} tokens <= 1024 MiB", peak, peak is not None and peak <= GIB)
    ends = [found.get("plugin_alone", size, 1.0, "peak_mib") for size in (reference, tokens[-1])]
    one = 2 * document["hidden"] / 2**20  # MiB of a token's hidden state in bf16
    growth = None
    if None not in ends and tokens[-1] > reference:
        growth = (ends[1] - ends[0]) / ((tokens[-1] - reference) * one)
    target = "alone, growth per token beyond that <= 4 hidden states in bf16 (0 logits)"
    verdict(target, growth, growth is not None and growth <= 4)
    less = found.ratio("peak_mib", reference, 1.0)
    verdict(f"verl's peak / ours at {reference} tokens >= 10", less, less is not None and less >= 10)
    for fraction, limit in ((1.0, 1.0), (0.5, 1.6)):
        speed = [found.ratio("ms", size, fraction) for size in tokens if size >= min(8192, reference)]
        known = [value for value in speed if value is not None]
        slowest = min(known) if known else None
        verdict(f"verl's time / ours, mask {fraction} >= {limit}", slowest, slowest is not None and slowest >= limit)
    agreement = document.get("agreement", {})
    for name, value in agreement.items():
        if isinstance(value, float) and "total_variation" not in name:
            verdict(f"difference: {name}", value, value <= (1e-5 if name.startswith("fp32") else 2e-2))
            result[-1]["found"] = float(f"{value:.2g}")
    return result


def cell(found: Found, who: str, tokens: int, fraction: float, release: str) -> str:
    peak, ms = (found.get(who, tokens, fraction, what, release) for what in ("peak_mib", "ms"))
    if peak is None or ms is None:
        return f"{found.text(who, tokens, fraction, release)} | "
    return f"{peak / GIB:.2f} | {ms:.1f}"


def table(found: Found, release: str, contenders: tuple[str, ...]) -> str:
    heads = "".join(f" {TITLES[who]}: GiB | ms |" for who in contenders)
    lines = [f"| tokens | mask |{heads} less memory | faster |", "|---:|---:|" + "---:|" * (2 * len(contenders) + 2)]
    ours, other = contenders
    for tokens, fraction in found.sizes(release):
        cells = " | ".join(cell(found, who, tokens, fraction, release) for who in contenders)
        ratios = [found.ratio(what, tokens, fraction, release, other, ours) for what in ("peak_mib", "ms")]
        texts = ["" if value is None else f"{value:.{digits}f}x" for value, digits in zip(ratios, (0, 2))]
        lines.append(f"| {tokens:,} | {fraction:g} | {cells} | {texts[0]} | {texts[1]} |")
    return "\n".join(lines)


def section(document: dict[str, Any]) -> str:
    found = Found(document)
    parts = [f"megatron-core {release}:\n\n{table(found, release, ('plugin', 'verl'))}" for release in found.releases]
    alone = table(found, found.releases[0], ("plugin_alone", "plain_alone"))
    targets = "\n".join(f"- {'met' if v['met'] else '**missed**'}: {v['target']}: {v['found']}"
                        for v in verdicts(document))  # fmt: skip
    names = {**{o: f"`{o}`" for o in ("cross_entropy", "soft_cross_entropy", "total_variation")}}
    variants = "\n".join(
        f"| {names.get(name, name)} | {v['peak_mib'] / GIB:.2f} | {v['ms']:.1f} |"
        for name, v in document.get("variants", {}).items()
        if isinstance(v, dict) and "ms" in v
    )
    versions = document["releases"][found.releases[0]]
    return f"""
## Memory and time of the MTP loss

Forward and backward of the MTP loss of one depth, bf16, hidden size {document["hidden"]:,}, vocabulary {document["vocabulary"]:,}, one GPU. *In the model*: the real `GPTModel._postprocess`, the plugin's and verl {document["verl"]}'s patch on the same model; the MTP layers are replaced by ready hidden states and the policy's own logits left out, so that what remains is the loss. *Alone*: the loss function against PyTorch's `cross_entropy` on full logits. GiB: peak above what was allocated before, gradients included. No weight asks for a gradient. Medians of samples taken in turns.

{(chr(10) * 2).join(parts)}

The function alone:

{alone}

The other objectives, alone, every token trained (they project the policy's hidden states too):

| loss | GiB | ms |
|---|---:|---:|
{variants}

![memory and time over tokens](results/mtp_loss.png)

Targets:

{targets}

{document["device"]}, Python {versions["python"]}, torch {versions["torch"]}. `python benchmarks/mtp_loss.py`.
"""  # noqa: E501


def plot(document: dict[str, Any]) -> None:
    """Peak memory and time over tokens, every token trained; a cross where memory ran out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    found = Found(document)
    tokens = sorted({size[0] for size in found.sizes()})
    for axes, what, unit, label in zip(panels, ("peak_mib", "ms"), (GIB, 1), ("peak memory (GiB)", "time (ms)")):
        for who, title in TITLES.items():
            points = [(size, value / unit) for size in tokens if (value := found.get(who, size, 1.0, what)) is not None]
            if not points:
                continue
            style = "-o" if who in ("plugin", "verl") else "--s"
            axes.plot(*zip(*points), style, color=COLOURS[who], markersize=4, label=title)
            missing = {found.text(who, size) for size in tokens if size > points[-1][0]}
            if what == "peak_mib" and "out of memory" in missing:
                axes.annotate("  then out of memory", points[-1], color=COLOURS[who], fontsize=9, va="center")
        axes.set(xlabel="tokens in a micro-batch", ylabel=label, ylim=(0, None))
        axes.set_xticks(tokens, [f"{size // 1024}k" if size >= 1024 else str(size) for size in tokens])
        axes.grid(axis="y", alpha=0.25)
    panels[0].legend(frameon=False)
    figure.suptitle(f"MTP loss, vocabulary {document['vocabulary']:,}, hidden size {document['hidden']:,}, "
                    f"{document['device']}", fontsize=12)  # fmt: skip
    results_page.RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(results_page.RESULTS / "mtp_loss.png", dpi=150)
    plt.close(figure)


def write(document: dict[str, Any]) -> None:
    """docs/results/mtp_loss.{json,png} and the section in docs/RESULTS.md."""
    plot(document)
    results_page.write("mtp_loss", document, section(document))
