"""From measured turns to the figures of the report."""

import dataclasses

import pytest


@pytest.fixture
def plan():
    from peers_plan import Configuration, Plan, Workload

    return Plan(
        "smollm2",
        (
            Configuration("ours", "hasten", "carried", 4),
            Configuration("slow", "llama_cpp", "Q4_0", 4),
            Configuration("fast", "openvino", "Q8_0", 8, every=2),
        ),
        Workload(prefill=100, context=10, decode=10, sequences=2, prompt=5, output=4),
        rounds=4,
        seconds=1,
    )


def turn(seconds, others=0.0):
    """A turn in which each part takes so long."""
    return {
        "prefill": {"seconds": seconds, "others": others},
        "decode": {"seconds": seconds, "tokens": [1, 2, 3], "others": others},
        "batch": {"seconds": seconds, "phase_seconds": seconds / 2, "phase_tokens": 6,
                  "others": others},
    }  # fmt: skip


def raw(rounds):
    about = {"load_seconds": 1.0, "rss_bytes": 1}
    ours = {
        "step_bytes": 1000,
        "layer_operations": 80,
        "output_operations": 20,
        "kv_bytes_per_token": 10,
    }
    limits = {
        "bandwidth_bytes_per_s": {"1000": 10_000.0},
        "int8_operations_per_s": 1000.0,
        "fp32_operations_per_s": 500.0,
    }
    return {
        "settings": {"threads": 2},
        "peers": {"ours": {**about, **ours}, "slow": about, "fast": about},
        "failed": {"other": "no such module"},
        "accuracy": {},
        "rounds": [
            {"number": number, "turns": turns, "limits": limits}
            for number, turns in enumerate(rounds, 1)
        ],
    }


def ratio_of(summary, scenario, against):
    return next(
        one for one in summary["ratios"] if (one["scenario"], one["against"]) == (scenario, against)
    )


def test_rates_ratios_and_limits(plan):
    from peers_figures import summarize_model

    both = {"ours": turn(1.0), "slow": turn(4.0)}
    found = summarize_model(raw([{**both, "fast": turn(2.0)}, both, both]), plan)
    scenarios = found["configurations"]["ours"]["scenarios"]
    assert scenarios["prefill"]["tokens_per_s"] == pytest.approx(100)
    assert scenarios["batch"]["tokens_per_s"] == pytest.approx(8)
    assert scenarios["batch decode"]["tokens_per_s"] == pytest.approx(12)
    # 10 tokens in 1 s; each reads 1000 + 15 * 10 bytes at 10 kB/s.
    assert scenarios["decode"]["of_limit"]["estimate"] == pytest.approx(0.115 / 0.1)
    # 100 tokens in 1 s; each takes 80 + 20 / 100 operations at 1000/s.
    assert scenarios["prefill"]["of_limit"]["estimate"] == pytest.approx(0.0802 / 0.01)
    best = ratio_of(found, "decode", "any peer")
    assert (best["other"], best["ratio"]["estimate"], best["rounds"]) == ("fast", 2.0, 1)
    assert ratio_of(found, "decode", "equal bits")["other"] == "slow"
    assert ratio_of(found, "decode", "llama.cpp")["ratio"]["estimate"] == pytest.approx(4)
    assert found["failed"] == {"other": "no such module"}


def test_disturbed_turns_are_left_out_while_enough_are_quiet(plan):
    from peers_figures import summarize_model

    quiet = {"ours": turn(1.0), "slow": turn(2.0)}
    noisy = {"ours": turn(9.0, others=0.5), "slow": turn(2.0)}
    found = summarize_model(raw([quiet, noisy, quiet, quiet]), plan)
    figure = found["configurations"]["ours"]["scenarios"]["decode"]
    assert (figure["tokens_per_s"], figure["rounds"], figure["quiet"]) == (10.0, 3, True)
    assert ratio_of(found, "decode", "llama.cpp")["ratio"]["high"] == 2.0
    found = summarize_model(raw([quiet, noisy, noisy, quiet]), plan)
    figure = found["configurations"]["ours"]["scenarios"]["decode"]
    assert (figure["rounds"], figure["quiet"]) == (4, False)


def test_goals_name_what_was_reached(plan):
    from peers_figures import summarize_model

    found = summarize_model(raw([{"ours": turn(1.0), "slow": turn(2.0)}] * 3), plan)
    goals = {(one["scenario"], one["against"]): one for one in found["goals"]}
    assert not goals["decode", "llama.cpp"]["holds"]
    assert goals["prefill", "any peer"]["holds"]
    assert goals["prefill", "any peer"]["other"] == "slow"


def test_missing_turns_leave_a_gap_not_an_error(plan):
    from peers_figures import summarize_model
    from peers_report import model_markdown

    document = raw([{"ours": turn(1.0), "slow": {"prefill": turn(2.0)["prefill"]}}] * 3)
    document["settings"]["workload"] = dataclasses.asdict(plan.workload)
    found = summarize_model(document, plan)
    assert found["configurations"]["slow"]["scenarios"]["decode"] is None
    assert "other: no such module" in model_markdown("smollm2", found)


def test_accuracy_is_held_against_llama_cpp_at_equal_bits(plan):
    from peers_figures import summarize_model

    def loss(low, estimate, high):
        return {"kl_divergence": {"low": low, "estimate": estimate, "high": high}}

    document = raw([{"ours": turn(1.0), "slow": turn(2.0)}] * 3)
    for mine, holds in (((0.1, 0.2, 0.3), True), ((0.3, 0.4, 0.5), False)):
        document["accuracy"] = {
            "ours": loss(*mine),
            "slow": loss(0.1, 0.15, 0.2),
            "fast": {"error": "shows no logits"},
        }
        (goal,) = summarize_model(document, plan)["accuracy_goals"]
        assert (goal["other"], goal["holds"]) == ("slow", holds)


def test_phase_is_while_all_sequences_decode():
    from peers_rounds import together_figures

    found = together_figures([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], 4)
    assert found == {"seconds": 5.0, "phase_seconds": 2.0, "phase_tokens": 4}


def test_a_sequence_of_another_length_fails():
    from peers_process import PeerError
    from peers_rounds import together_figures

    with pytest.raises(PeerError, match="tokens, not 4"):
        together_figures([[1.0, 2.0]], 4)


def test_chart_places_ratios_on_a_logarithmic_axis(plan):
    import xml.etree.ElementTree as ElementTree

    from peers_chart import draw_ratios
    from peers_figures import summarize_model

    found = summarize_model(raw([{"ours": turn(1.0), "slow": turn(4.0)}] * 3), plan)
    drawn = ElementTree.fromstring(draw_ratios({"models": {"smollm2": found}}))
    space = "{http://www.w3.org/2000/svg}"
    lines = {}
    for text, path in zip(
        (one for one in drawn.iter(f"{space}text") if one.get("class") == "middle"),
        (one for one in drawn.iter(f"{space}path") if one.get("class") in ("grid", "one")),
        strict=True,
    ):
        lines[text.text] = float(path.get("d").split("V")[0][1:].split()[0])
    dots = {float(one.get("cx")) for one in drawn.iter(f"{space}circle")}
    assert len(dots) == 1
    expected = lines["1×"] + (lines["2×"] - lines["1×"]) * 2
    assert dots.pop() == pytest.approx(expected, abs=0.2)
