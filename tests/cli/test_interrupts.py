"""Ctrl-C where other code drops errors."""

import contextlib
import signal

import pytest

from hasten.cli.interrupts import kept_interrupts, noted_interrupts
from hasten.cli.search_progress import search_progress


def swallow_ctrl_c():
    """What an extension module does with an error while its classes are registered."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def test_a_swallowed_interrupt_rises_at_the_next_word_of_progress(capsys):
    with search_progress() as tell:
        tell("first", 0.1)
        swallow_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            tell("second", 0.2)
    assert "first" in (said := capsys.readouterr().err)
    assert "second" not in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_rises_where_it_comes():
    with kept_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_swallowed_interrupt_rises_once():
    with kept_interrupts() as raise_swallowed:
        raise_swallowed()
        swallow_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            raise_swallowed()
        raise_swallowed()


def test_what_ignores_interrupts_goes_on_ignoring_them():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_interrupts() as raise_swallowed:
            signal.raise_signal(signal.SIGINT)
            raise_swallowed()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_are_noted_and_nothing_else():
    with noted_interrupts() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
