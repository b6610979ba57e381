"""The live view on a real terminal, and plain lines everywhere else."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import select
import struct
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline import call
from ugr_fast import cli, progress
from ugr_fast.progress import BLOCKS, RECENT, Step, Validation, Watch, bar, curve, line, rows, say

ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
BELOW = ["rl", "hit rate", "hit rate@1", "prompts/s", "NDCG@10", "AUROC"]


def watching(*rewards, unit="update", patience=0, valid=None):
    watch = Watch(unit, patience)
    watch.valid = valid
    for reward in rewards:
        watch.step(Step({"reward": reward, "hit rate": 0.5}, ("prompts/s", 100.4), {"rollout": 0.25, "update": 0.5}))
    return watch


def texts(watch):
    return [" ".join(filter(None, row)) for row in rows(watch)]


# -------------------------------------------------------------------------------------------------- the view


def test_nothing_is_shown_of_what_is_not_known():
    assert rows(Watch("update")) == []
    assert texts(watching(0.1)) == ["reward 0.100 ▁", "hit rate 0.500 ▁", "prompts/s 100 (25% rollout, 50% update)"]


@pytest.mark.parametrize(
    ("valid", "patience", "shown"),
    [
        (Validation(0, 0.3, 0, at=0, ndcg=0.3), 0, "NDCG@10 0.3000 at update 0"),  # the start is no candidate
        (Validation(8, 0.3, 0, at=8, ndcg=0.3), 0, "NDCG@10 0.3000 at update 8, the best"),
        (Validation(8, 0.3, 2, at=24, ndcg=0.1), 0, "NDCG@10 0.1000 at update 24, best 0.3000 at 8"),
        (Validation(8, 0.3, 2, at=24, ndcg=0.1), 5, "NDCG@10 0.1000 at update 24, best 0.3000 at 8, stale 2 of 5"),
        (Validation(8, 0.3, 2), 5, "NDCG@10 - best 0.3000 at 8, stale 2 of 5"),  # resumed
    ],
)
def test_last_and_best_validation(valid, patience, shown):
    assert texts(watching(patience=patience, valid=valid)) == [shown]


@pytest.mark.parametrize(("confidence", "shown"), [(0.75, "0.750"), (math.nan, "-")])
def test_aurocs(confidence, shown):
    valid = Validation(8, 0.3, 0, 8, 0.3, {"confidence": confidence, "likelihood": 0.625})
    assert texts(watching(valid=valid))[1:] == [f"AUROC {shown} of confidence, 0.625 of likelihood"]


def test_rates_and_shares_are_means_over_the_recent_steps():
    watch = Watch("update")
    for number in range(100):
        watch.step(Step({"reward": number}, ("prompts/s", number), {"rollout": number / 100}))
    assert len(watch.recent) == RECENT
    mean = 99 - (RECENT - 1) / 2
    assert rows(watch)[1] == ("prompts/s", f"{mean:.0f}", f"({mean / 100:.0%} rollout)")
    assert rows(watch)[0].rest == curve(range(100 - RECENT, 100))


@pytest.mark.parametrize(("rate", "shown"), [(0.32, "0.3"), (9.5, "9.5"), (10.0, "10")])
def test_a_slow_rate_is_not_rounded_away(rate, shown):
    watch = Watch("update")
    watch.step(Step({}, ("prompts/s", rate)))
    assert texts(watch) == [f"prompts/s {shown}"]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_curves(values):
    drawn = curve(values)
    assert len(drawn) == len(values)
    known = [(value, block) for value, block in zip(values, drawn, strict=True) if not math.isnan(value)]
    assert all((block == " ") == math.isnan(value) for value, block in zip(values, drawn, strict=True))
    ordered = [BLOCKS.index(block) for _, block in sorted(known, key=lambda pair: pair[0])]
    assert ordered == sorted(ordered)
    shown = [round(value, 3) for value, _ in known]
    if shown and max(shown) > min(shown):
        assert (ordered[0], ordered[-1]) == (0, len(BLOCKS) - 1)


def test_rounding_noise_draws_no_mountains():
    noise = [1e-9, -3e-9, 2e-9]
    assert curve(noise) == "▁▁▁"
    assert rows(watching(*noise, -1e-9))[0].value == "0.000"  # nor a minus


def test_one_line_says_the_same():
    valid = Validation(8, 0.3, 2, 24, 0.1, {"confidence": math.nan, "likelihood": 0.625})
    watch = watching(0.1, 0.2, patience=5, valid=valid)
    assert line("rl", 200, 50, 3725.4, watch) == (
        "rl: 50/200, 1:02:05 left, reward 0.200, hit rate 0.500, prompts/s 100 (25% rollout, 50% update), "
        "NDCG@10 0.1000 at update 24, best 0.3000 at 8, stale 2 of 5, AUROC - of confidence, 0.625 of likelihood"
    )


# ------------------------------------------------------------------------------------------------- a terminal


class Terminal(io.StringIO):
    """Says that it is a terminal, and keeps what is written."""

    def isatty(self):
        return True


class AsciiTerminal(Terminal):
    encoding = "ascii"


def screen(written, width):
    """The lines that a terminal ends with, and whether it shows its cursor; it wraps, and knows no other codes."""
    lines, row, column, shown = [[]], 0, 0, True
    for piece in re.split(r"(\x1b\[[?0-9;]*[A-Za-z]|\r|\n)", written):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
        elif code := ESCAPE.fullmatch(piece):
            assert code[2] in "AKmhl", piece
            row -= int(code[1] or 1) if code[2] == "A" else 0
            lines[row] = [] if code[2] == "K" else lines[row]
            shown = code[2] == "h" if code[1] == "?25" else shown
        else:
            assert "\x1b" not in piece
            for letter in piece:
                row, column = (row + 1, 0) if column == width else (row, column)
                lines += [[] for _ in range(row + 1 - len(lines))]
                lines[row] += [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = letter
                column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(letters).rstrip() for letters in lines], shown


@contextlib.contextmanager
def on_terminal(monkeypatch, width, kind=Terminal, **environment):
    """Make standard error a terminal of that width; yield it."""
    for name, value in {"TERM": "xterm", "COLUMNS": str(width), "LINES": "24", **environment}.items():
        monkeypatch.setenv(name, value)
    with contextlib.redirect_stderr(kind()) as terminal:
        yield terminal


@pytest.mark.parametrize("width", [8, 20, 40, 59, 80, 200])
def test_bars_within_a_bar_leave_one_display(monkeypatch, width):
    valid = Validation(8, 0.3, 2, 24, 0.1, {"confidence": math.nan, "likelihood": 0.625})
    with on_terminal(monkeypatch, width) as terminal, bar("rl", 2, watch=watching(0.1, valid=valid)) as advance:
        for update in range(2):
            advance(1)
            with bar("validating [x]", 7) as inner:
                inner(7)  # a description is no markup
                progress._display.refresh()
            say(f"said {update}")
    lines, shown = screen(terminal.getvalue().replace("\n", "\r\n"), width)
    assert lines[:2] == ["said 0", "said 1"]
    assert shown
    assert lines[-1] == ""
    assert width < 40 or "validating [x]" in terminal.getvalue()
    assert all(len(drawn) <= width - 3 for drawn in lines[2:])
    drawn = zip(lines[2:-1], ["rl", "reward", *BELOW[2:]], strict=True)  # no more, and each on one line
    assert all(text[:2] == name[:2] for text, name in drawn if width > 8)


def test_a_display_ends_with_an_error(monkeypatch):
    with on_terminal(monkeypatch, 80) as terminal:
        with pytest.raises(KeyboardInterrupt), bar("rl", 2, watch=watching(0.1)), bar("validating", 7):
            raise KeyboardInterrupt
        say("after")
    lines, shown = screen(terminal.getvalue().replace("\n", "\r\n"), 80)
    assert [text.split()[0] for text in lines[:-1]] == ["rl", "reward", "hit", "prompts/s", "after"]
    assert shown


def test_the_time_left_is_told_within_a_step(monkeypatch):
    clock = iter((0.0, 10.0, 20.0, 30.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with contextlib.redirect_stderr(io.StringIO()) as said, bar("sft", 3, done=1) as advance:
        for _ in range(3):
            advance(Fraction(1, 3))
    assert said.getvalue().splitlines() == [
        "sft: 1/3, 0:00:50 left",
        "sft: 1/3, 0:00:40 left",
        "sft: 2/3, 0:00:30 left",
    ]


def test_a_terminal_tells_the_time_left_within_a_step(monkeypatch):
    with on_terminal(monkeypatch, 80) as terminal, bar("sft", 3) as advance:
        for _ in range(6):
            advance(Fraction(1, 7))
            progress._display.refresh()
        assert "0/3" in terminal.getvalue()
        assert "-:--:--" not in terminal.getvalue().splitlines()[-1]
        advance(Fraction(1, 7))
        progress._display.refresh()
        assert "1/3" in terminal.getvalue().splitlines()[-1]


PLAIN = "rl: 1/2, 0:00:00 left, so far so good\n"


@pytest.mark.parametrize(
    ("setting", "said"), [({"TERM": "dumb"}, PLAIN), ({"kind": AsciiTerminal}, PLAIN), ({"RANK": "1"}, "")]
)
def test_no_drawing_where_it_cannot_be_or_by_other_processes(monkeypatch, setting, said):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with on_terminal(monkeypatch, 80, **setting) as terminal, bar("rl", 2) as advance:
        advance(1, note="so far so good")
    assert terminal.getvalue() == said


# ------------------------------------------------------------------------------------------------ the commands


OWNING = """
import fcntl, termios
from ugr_fast.cli import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
main()
"""


def run_on_terminal(args, width, interrupt=None):
    """Run a command in a pseudo-terminal that it owns, type ^C once `interrupt` is on it; return code and output."""
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    settings = termios.tcgetattr(theirs)
    settings[3] |= termios.NOFLSH  # ^C drops nothing that was written and not yet read
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    unset = ("COLUMNS", "LINES", "RANK", "PYTHONIOENCODING")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"TERM": "xterm"}
    command = [sys.executable, "-c", OWNING, *map(str, args)]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = subprocess.Popen(command, **streams, start_new_session=True, env=environment)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while select.select([ours], [], [], 120)[0] and (piece := os.read(ours, 65536)):
            written += piece
            if interrupt and interrupt in written:
                os.write(ours, b"\x03")
                interrupt = None
    os.close(ours)  # which ends a process that went silent
    return process.wait(60), written.decode()


def log_of(run):
    """The log without its clock."""
    found = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in values.items() if "second" not in key} for values in found]


def test_rl_on_a_terminal(pipeline, tmp_path):
    code, written = run_on_terminal(pipeline.rl_args(tmp_path / "rl"), width=80)
    assert code == 0, written
    lines, shown = screen(written, 80)
    where = next(number for number, text in enumerate(lines) if text.startswith("rl  "))
    assert [text.split("  ")[0] for text in lines[where : where + 6]] == BELOW
    assert "3/3" in lines[where]
    assert lines[where + 6].startswith("best on valid: ")
    assert sum(text.startswith("rl update ") for text in lines[:where]) == 3  # said above it
    assert "validating" in written  # shown,
    assert not any("validating" in text for text in lines)  # and gone
    assert shown
    assert all(len(text) <= 77 for text in lines[where : where + 6])
    assert log_of(tmp_path / "rl") == log_of(pipeline.rl)  # which no terminal saw
    weights = "checkpoints/step-00000003/state.safetensors"
    assert (tmp_path / "rl" / weights).read_bytes() == (pipeline.rl / weights).read_bytes()


def test_an_interrupted_rl_leaves_a_narrow_terminal_clean(pipeline, tmp_path):
    args = pipeline.rl_args(tmp_path / "rl", "--updates", 100000, "--eval-every", 100000, "--patience", 9)
    code, written = run_on_terminal(args, width=50, interrupt="▁".encode())
    assert code == 130
    lines, shown = screen(written, 50)
    assert shown
    where = next(number for number, text in enumerate(lines) if text.startswith("rl  "))
    assert [text.split("  ")[0] for text in lines[where : where + 6]] == BELOW
    assert lines[where + 6].startswith("ugr-fast: interrupted;")
    assert sum(text.startswith("hit rate@1") for text in lines) == 1
    assert all(len(text) <= 47 for text in lines[where : where + 6])


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_file_gets_plain_lines(pipeline, tmp_path, monkeypatch, forced):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    said = call(*pipeline.rl_args(tmp_path / "rl", "--patience", 5)).err
    assert "\x1b" not in said
    assert "\r" not in said
    assert re.search(
        r"^rl: 3/3, 0:00:00 left, hit rate \S+, hit rate@1 \S+, prompts/s [\d.]+ \(\d+% rollout, \d+% update\), "
        r"NDCG@10 \S+ at update 2, the best, stale 0 of 5, AUROC \S+ of confidence, \S+ of likelihood$",
        said,
        re.MULTILINE,
    )


def test_sft_on_a_terminal(pipeline, tmp_path, monkeypatch):
    with on_terminal(monkeypatch, 60) as terminal:
        cli.main([str(arg) for arg in pipeline.sft_args(tmp_path / "sft")])
    lines, shown = screen(terminal.getvalue().replace("\n", "\r\n"), 60)
    where = next(number for number, text in enumerate(lines) if text.startswith("sft  "))
    assert [text.split()[0] for text in lines[where : where + 4]] == ["sft", "loss", "rows/s", "NDCG@10"]
    assert sum(text.startswith(("sft ━", "validating")) for text in lines) == 0
    assert "2/2" in lines[where]
    assert shown
