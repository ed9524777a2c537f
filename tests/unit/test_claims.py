"""What the README says is what the committed results hold, and each of its claims links what carries it."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

README = (ROOT / "README.md").read_text()
#: Pages whose links must lead somewhere.
PAGES = ("README.md", "docs/RESULTS.md", "docs/MODELS.md", "docs/ARCHITECTURE.md", "benchmarks/gpu/README.md")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
GPU = ROOT / "benchmarks" / "gpu" / "results"
GIB = 2**30


def result(name: str, folder: Path = ROOT / "docs" / "results") -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def section(title: str) -> str:
    """A section of the README, up to the next one."""
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def says(text: str) -> bool:
    """Whether the README says this, in these words."""
    return text in README


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: str) -> None:
    for link in LINK.findall((ROOT / page).read_text()):
        if re.match(r"\w+:", link):  # another site
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_line_of_the_table_links_what_carries_it() -> None:
    rows = [line for line in section("What you get").splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) > 20
    for row in rows:
        assert LINK.search(row.rstrip("| ").rsplit("|", 1)[1]), row


def test_every_claim_about_gpus_links_its_result() -> None:
    lines = section("On GPUs").splitlines()[2:]
    claims = [line for line in lines if line.startswith(("- ", "**"))]
    assert len(claims) > 5
    for claim in claims:
        assert "](docs/RESULTS.md#" in claim, claim


# -- numbers -----------------------------------------------------------------------------------------------------------

RELEASED = "labels given, verl's patch"
TRAINING = ("train_", "detach_", "moe_train", "packed_train", "recompute_")


def test_the_contract_matrix() -> None:
    cells = result("contract")["cells"]
    total = len(cells[0]["on"]["required"]["passed"])
    assert says(f"all {len(cells)} pass all {total} checks of the [contract matrix]")
    assert not any(kind["failed"] for cell in cells for kind in cell["on"].values())

    failed = [cell["off"]["required"]["failed"] for cell in cells]
    right = sum(not any(name.startswith(TRAINING) for name in names) for names in failed)
    most = max(len(cell["off"]["required"]["passed"]) for cell in cells)
    assert most < total
    assert says(f"of {len(cells)} pairs of verl and megatron-core releases, verl as released passes all {total} of")
    assert says(
        f"on none (at most {most}), and all those that train on {right} (verl 0.9.0 and 0.9.1 with megatron-core"
    )
    whole = [cell for cell, names in zip(cells, failed) if not any(name.startswith(TRAINING) for name in names)]
    assert {(cell["verl"], cell["megatron_core"]) for cell in whole} == {("0.9.0", "0.16.1"), ("0.9.1", "0.16.1")}
    crashes = sum("train_logits" in names for names in failed)
    assert says(f"crashes on {crashes} of {len(cells)} pairs of releases")
    assert says(f"`TypeError` on {sum('labels_none_train' in names for names in failed)} pairs")
    leaks = sum("train_lm_head_isolated" in names and "train_logits" not in names for names in failed)
    assert says(f"on {leaks} of the {len(cells) - crashes} pairs that train")
    recompute = {
        (cell["verl"][:3], cell["megatron_core"][:4])
        for cell, names in zip(cells, failed)
        if "_checkpointed_forward" in names.get("recompute_train", "")
    }
    assert recompute == {("0.9", "0.18")}
    assert says("`TypeError` on megatron-core 0.18 with verl 0.9")


def test_the_mtp_loss() -> None:
    found = {
        (cell["who"], cell["fraction"]): cell
        for cell in result("mtp_loss")["cells"]
        if (cell["tokens"], cell["megatron_core"]) == (16_384, "0.16.1")
    }
    ours, theirs = found["plugin", 1.0], found["verl", 1.0]
    assert says(f"{theirs['peak_mib'] / 1024:.1f} GiB more at the peak, {theirs['ms']:.0f} ms")
    half = [found[who, 0.5]["ms"] for who in ("plugin", "verl")]
    assert says(f"{ours['peak_mib'] / 1024:.1f} GiB, {ours['ms']:.0f} ms; {half[0]:.0f} ms instead of {half[1]:.0f}")


def test_log_prob_recompute() -> None:
    ratios = [release["recompute_ratios"] for release in result("logprob_recompute")["releases"].values()]
    theirs = {f"{found[RELEASED]['ratio']:.1f}x" for found in ratios}
    assert len(theirs) == 1
    assert says(f"a second vocabulary projection: {theirs.pop()} the time of the model without MTP")
    ours = sorted(found["labels given"]["ratio"] for found in ratios)
    assert says(f"runs neither: {ours[0]:.2f}x to {ours[-1]:.2f}x")


def test_costs_in_verls_engine() -> None:
    variants = result("gpu_costs")["variants"]

    def seconds(variant: str, series: str) -> float:
        return statistics.median(variants[variant]["series"][series]["columns"]["ms"]) / 1e3

    recompute = {name: seconds(name, "recompute") for name in ("no_mtp", "released", "plugin")}
    step = {name: seconds(name, "step") for name in recompute}
    assert says(f"{recompute['released']:.2f} s ({recompute['no_mtp']:.2f} s without MTP): packing time grows")
    saved, packing = recompute["released"] - recompute["plugin"], recompute["no_mtp"] - recompute["plugin"]
    assert says(
        f"{recompute['plugin']:.2f} s. Of the {saved:.2f} s saved about {packing:.2f} s come from faster packing"
    )
    assert says(f"({recompute['no_mtp']:.3f} s less {recompute['plugin']:.3f} s)")
    assert says(f"{step['plugin']:.2f} s instead of {step['released']:.2f} s ({step['no_mtp']:.2f} s without MTP)")
    assert says(f"{variants['no_mtp']['parameters'] / 1e6:.0f}M parameters")


def test_fused_kernels() -> None:
    cell = result("fused_cuda")["cells"][0]
    gib = {name: size / GIB for name, size in cell["peak_bytes"].items()}
    ms = cell["milliseconds"]
    assert says(f"{gib['fused_train']:.1f} GiB instead of {gib['plain_train']:.1f} at the peak of a training step")
    assert says(f"{ms['fused_train']:.0f} ms instead of {ms['plain_train']:.0f} (H200, one pass)")


def test_weight_syncs() -> None:
    sessions = result("weight_sync", GPU)["sessions"]
    repeat = {name: session["phases"]["repeat"]["values"] for name, session in sessions.items()}
    used = {name: values["used_mib"] for name, values in repeat.items()}
    released, ours = used["released"], used["plugin"]
    left = (released[-1] - released[4]) / (len(released) - 5)
    assert says(f"{left:.0f} MiB a sync over {len(released)} syncs")
    assert ours[-1] == ours[4]
    assert says(f"0 MiB over {len(ours)} syncs")
    assert says(f"a model of {sessions['plugin']['model']['weights_gib']:.2f} GiB, H200")
    memory = sessions["plugin"]["phases"]["memory"]["values"]
    resumes = (repeat["plugin"]["steps"]["kv_resume_s"]["median"], memory["resume_s"]["median"])
    assert says(
        f"{memory['kv_pools_with_drafter_mib'] / 1024:.0f} GiB, all that the same small model leaves on an H200"
    )
    assert says(f"in {memory['release_s']['median']:.2f} s and mapped again in {resumes[0]:.2f} to {resumes[1]:.1f} s")


def test_hybrid() -> None:
    found = result("gpu_hybrid")["variants"]
    ours, theirs = found["plugin"], found["released"]
    assert ours["ended_well"]
    assert says(
        f"): {ours['steps']} steps, to the end. `rollout/spec_accept_rate` is {ours['reported_rate']:.1%} where"
    )
    assert says(f"own log says {ours['served_rate']:.1%}, and {theirs['reported_rate']:.1%} with verl as released")
    apart = [f"{found[name]['probs_diff']:.0e}".replace("e-0", "e-") for name in ("plugin", "no_mtp")]
    assert says(f"differ by {apart[0]} in probability, {apart[1]} without MTP")


def test_fully_asynchronous_syncs() -> None:
    steps = result("fully_async", GPU)["variants"]["plugin"]["steps"]
    found = result("gpu_fully_async")["variants"]["plugin"]
    release, resume = steps["weight_sync/kv_release_s"], steps["weight_sync/kv_resume_s"]
    assert set(steps["weight_sync/kv_freed_gib"]) == {110.86}
    assert found["ended_well"]
    assert says(
        f"#fully-asynchronous-1--1-gpus): {found['steps']} steps, to the end. 110.9 GiB of KV cache are released"
    )
    assert says(f"at each of {len(release)} syncs")
    medians = f"{statistics.median(release):.2f} and {statistics.median(resume):.2f} s (medians; "
    assert says(f"{medians}{max(release):.1f} and {max(resume):.2f} s at most)")
    slow = [s for s in steps["timing_s/timing_s/param_sync"] if s is not None and s > 1]
    busy = [requests for requests in steps["weight_sync/aborted_requests"] if requests]
    assert len(slow) == len(busy) == 4
    assert says(f"{found['sync_s']:.2f} s (median), but {min(slow):.1f} to {max(slow):.1f} s in the four of them that")
    small = result("gpu_fully_async_4gpus")["variants"]["plugin"]
    assert small["ended_well"]
    assert says(f"{small['steps']} steps, to the end, with {small['weight_sync_kv_freed_gib']:.1f} GiB of KV cache")


def test_acceptance_is_predicted() -> None:
    found = result("gpu_acceptance")["variants"]
    apart = [one["largest_difference"] for one in found.values() if one["largest_difference"] is not None]
    assert {one["steps"] for one in found.values()} == {25}
    assert len(apart) == 3
    assert max(apart) < 0.012
    assert says("within 1.2 points at each of 25 steps, in three ways of training MTP")
    served = [
        rate
        for variant in result("acceptance", GPU)["variants"].values()
        for rate in variant["steps"]["rollout/spec_accept_rate"]
        if rate is not None
    ]
    assert says(f"Acceptance was between {min(served):.0%} and {max(served):.0%} all the time")
    assert says(f"[drafts at {found['frozen']['served_ends'][1]:.0%}]")


def test_the_matrix_on_gpus() -> None:
    releases = result("gpu_matrix")["releases"]
    cells = {mode: [c for one in releases.values() for c in one["layouts"][mode].values()] for mode in ("on", "off")}
    held = [(sum(check["ok"] for check in cell.values()), len(cell)) for cell in cells["on"]]
    whole, rest = held.count((23, 23)), held.count((22, 23))
    assert whole + rest == len(held)
    assert {one["layouts"]["on"]["single"]["recompute_costs"]["ok"] for one in releases.values()} == {True}
    assert says(f"all 23 checks hold with the plugin in the {whole} cells of one GPU")
    assert says(f"22 of 23 in each of the {rest} cells of two")
    assert {name for cell in cells["on"] for name, check in cell.items() if not check["ok"]} == {"recompute_costs"}
    without = {
        release: {(sum(check["ok"] for check in cell.values()), len(cell)) for cell in one["layouts"]["off"].values()}
        for release, one in releases.items()
    }
    oldest, *others = without
    assert (oldest, without[oldest]) == ("0.16.1", {(15, 17)})
    assert all(without[release] == {(5, 17)} for release in others)
    assert says("Without the plugin 15 of 17 hold on 0.16.1, and 5 of 17 on the others")


def test_what_acceptance_is_worth() -> None:
    rates = result("gpu_rollout_speed")["rates"]

    def gains(rate: str, base: str) -> list[str]:
        def speed(name: str, size: str) -> float:
            return statistics.median(one["tokens_per_s"] for one in rates[name]["batches"][size])

        return [f"{speed(rate, size) / speed(base, size) - 1:+.0%}" for size in ("8", "32", "128")]

    small, middle, large = gains("0.54", "none")
    assert says(f"{small} tokens/s at 8 requests at a time, {middle} at 32, and **{large} at 128**")
    small, middle, large = gains("0.54", "0.44")
    assert says(f"from 44% to 54% accepted it is {small}, {middle} and {large}")
    found = result("gpu_fully_async")["variants"]
    base = found["no_mtp"]
    told = [
        f"{found[name]['busy_tokens_per_s'] / base['busy_tokens_per_s'] - 1:.0%}" for name in ("plugin", "released")
    ]
    assert says(f"[{told[0]} with the plugin, {told[1]} with verl as released]")
    assert base["cut_off"]
    assert says(f"was cut off after {base['steps']} steps")


def test_fresh_environments() -> None:
    for row in result("fresh_install")["rows"]:
        assert row["removed_or_changed"] == row["left_after_uninstall"] == []


def test_model_families_and_stacks() -> None:
    found = result("models")
    assert says(f"[{len(found['families'])} families, {len(found['stacks'])} stacks](docs/MODELS.md)")


def test_round_trips() -> None:
    for entry in result("round_trip")["stacks"]:
        assert all(case["bit_equal"] for case in entry["cases"].values())
