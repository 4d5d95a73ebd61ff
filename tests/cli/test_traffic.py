import json


def test_a_recording_is_described(hasten, tmp_path):
    path = tmp_path / "traffic.jsonl"
    lines = [{"tokens": [1] * 20, "max_tokens": 5, "at": n / 2} for n in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = hasten("traffic", str(path))
    assert result.status == 0
    assert "2" in result.out
    assert "80.0%" in result.out
    document = json.loads(hasten("traffic", str(path), "--json", "-").out)
    assert (document["rate"], document["repeated"], document["burstiness"]) == (2.0, 0.8, 0)


def test_texts_are_not(hasten, tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    result = hasten("traffic", str(path))
    assert result.status == 2
    assert "hasten serve --record" in result.err
