import os
import signal
import subprocess
import sys
import threading

import pytest

from finetune.errors import Stopped
from finetune.training.stop_request import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _same_handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_where_nothing_waits(number):
    with pytest.raises(Stopped) as caught, StopRequest().listening():
        os.kill(os.getpid(), number)
    assert caught.value.exit_status == 128 + number
    assert str(caught.value) == f"stopped by {signal.Signals(number).name}"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_a_safe_point(capfd, number):
    request = StopRequest()
    with request.listening(), request.until_safe():
        assert not request.wants_stop
        os.kill(os.getpid(), number)
        assert request.wants_stop
        assert not request.agrees_to_stop
        with pytest.raises(Stopped) as caught:
            request.stop()
    assert caught.value.number == number
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\n{name}: saving after this step; once more stops at once.\n"


def test_one_block_within_another_hears_until_both_end():
    request = StopRequest()
    with request.listening():
        with request.listening(), request.until_safe():
            pass
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_signals_are_taken_back_from_who_took_them():
    request, others = StopRequest(), []
    with request.listening(), request.until_safe():
        signal.signal(signal.SIGTERM, lambda *_: others.append(1))
        request.listen_again()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.wants_stop
    assert others == []


def test_what_is_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert not request.wants_stop


def test_another_thread_hears_nothing_and_does_not_fail():
    entered = []

    def enter():
        with StopRequest().listening():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]


def test_a_process_that_follows_another_stops_with_a_number_too():
    with pytest.raises(Stopped) as caught:
        StopRequest().stop()
    assert caught.value.number == signal.SIGTERM


@pytest.mark.parametrize(("minutes", "wants"), [(None, False), (0, True), (1, False)])
def test_a_save_is_wanted_when_the_last_was_long_ago(minutes, wants):
    request = StopRequest(minutes)
    assert request.wants_save is wants
    request.agree(to_stop=False, to_save=True)
    request.saved()
    assert not request.agrees_to_save


TWICE = """
import signal, sys, time
from finetune.training.stop_request import StopRequest
request = StopRequest()
with request.listening(), request.until_safe():
    print("ready", flush=True)
    while not request.wants_stop:
        time.sleep(0.01)
    print("heard", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize(
    ("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGUSR1", "SIGTERM")]
)
def test_the_second_signal_ends_the_process_itself(first, second):
    with subprocess.Popen(
        [sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, first))
        assert process.stdout.readline() == "heard\n"
        process.send_signal(getattr(signal, second))
        assert process.wait(10) == -getattr(signal, second)
