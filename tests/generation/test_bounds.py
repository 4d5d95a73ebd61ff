"""What the engine refuses to sample."""

import math

import pytest

from hasten.errors import UsageError
from hasten.generation.bounds import check_sampling
from hasten.types import SamplingParams, Structure

VOCABULARY = 100

WRONG = [
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"max_tokens": math.nan}, "max_tokens is nan"),
    ({"temperature": -1}, "temperature is -1"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_k": math.inf}, "top_k is inf"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"top_p": math.nan}, "top_p is nan"),
    ({"min_p": 1}, "min_p is 1"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"min_p": math.nan}, "min_p is nan"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, "seed is"),
    ({"stop": ("",)}, "stop holds the empty text"),
    ({"stop": ("a",) * 65}, "stop holds 65 texts; allowed: up to 64"),
    ({"stop": ("a" * 1025,)}, "1025 characters; allowed: up to 1024"),
    ({"stop_tokens": (100,)}, "stop_tokens holds 100; allowed: 0 to 99"),
    ({"stop_tokens": (-1,)}, "stop_tokens holds -1"),
    ({"stop_tokens": (1,) * 1025}, "stop_tokens holds 1025 tokens; allowed: up to 1024"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0; allowed: 0.01 to 100"),
    ({"repetition_penalty": 101}, "repetition_penalty is 101"),
    ({"repetition_penalty": math.nan}, "repetition_penalty is nan"),
    ({"presence_penalty": 2.1}, "presence_penalty is 2.1; allowed: -2 to 2"),
    ({"presence_penalty": math.nan}, "presence_penalty is nan"),
    ({"frequency_penalty": -2.1}, "frequency_penalty is -2.1"),
    ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
    ({"logit_bias": {100: 1.0}}, "logit_bias holds the token 100; allowed: 0 to 99"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias holds the token -1"),
    ({"logit_bias": {1: 100.5}}, "logit_bias of token 1 is 100.5; allowed: -100 to 100"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 is nan"),
    ({"logit_bias": {1: -math.inf}}, "logit_bias of token 1 is -inf"),
    ({"n": 0}, "n is 0; allowed: 1 to 128"),
    ({"n": 129}, "n is 129"),
    ({"logprobs": -1}, "logprobs is -1; allowed: 0 to 20"),
    ({"logprobs": 21}, "logprobs is 21"),
    ({"logprobs": math.nan}, "logprobs is nan"),
    ({"prompt_logprobs": 21}, "prompt_logprobs is 21"),
    ({"structure": Structure("regex", "a"), "ignore_eos": True}, "ignore_eos"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_values_out_of_range(changes, message):
    with pytest.raises(UsageError) as caught:
        check_sampling(SamplingParams(**changes), VOCABULARY)
    assert message in str(caught.value)
    assert "allowed: " in str(caught.value) or caught.value.do


def test_values_in_range():
    check_sampling(SamplingParams(), VOCABULARY)
    every_limit = SamplingParams(
        max_tokens=1,
        temperature=100,
        top_k=10**9,
        top_p=1.0,
        min_p=0.999,
        seed=2**64 - 1,
        stop=("a" * 1024,) * 64,
        ignore_eos=True,
        stop_tokens=(0, 99) * 512,
        repetition_penalty=0.01,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={0: -100, 99: 100},
        n=128,
        logprobs=20,
        prompt_logprobs=0,
    )
    check_sampling(every_limit, VOCABULARY)
