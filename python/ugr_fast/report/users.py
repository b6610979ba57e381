"""A sample of users to browse: what came before, what each run recommended and how sure it was, what came next."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from ugr_fast.report.blocks import Block, heading, paragraph
from ugr_fast.report.figures import VARIABLES, colour_of
from ugr_fast.report.read import EvaluatedRun
from ugr_fast.report.tables import DASH, plain

Shown = dict[str, Any]


class Recommended(NamedTuple):
    """What one run recommends to one user."""

    run: EvaluatedRun
    items: list[Shown]
    longest: float
    """The highest confidence of all that the run recommends here, the length of a full bar."""

    @property
    def rank(self) -> int | None:
        """Rank of the next item, from 1; None where it is absent."""
        return next((rank for rank, item in enumerate(self.items, start=1) if item["hit"]), None)

    def bar(self, item: Shown) -> float:
        """Return the confidence in an item as a share of the longest bar."""
        return float(item["calibrated"]) / self.longest if self.longest else 0.0


class User(NamedTuple):
    """A user: what came before, what came next, what each run recommended."""

    user: int
    history: list[str]
    target: str
    lists: list[Recommended]

    @property
    def hit(self) -> bool:
        """Whether some run has the next item among its ten."""
        return any(found.rank for found in self.lists)

    @property
    def outcome(self) -> str:
        """In words where the next item was found."""
        ranks = [f"{found.run.label} rank {found.rank}" for found in self.lists if found.rank]
        return ", ".join(ranks) or "not among the recommended"


def section(runs: list[EvaluatedRun]) -> list[Block]:
    """Return the section to browse."""
    longest = [
        max(
            (float(item["calibrated"]) for shown in run.found["examples"] for item in shown["recommended"]), default=0.0
        )
        for run in runs
    ]
    users = [_user(runs, longest, shown) for shown in zip(*(run.found["examples"] for run in runs), strict=True)]
    hits = sum(user.hit for user in users)
    scales = "; ".join(
        f"{run.label}: {run.signal}, longest bar {top:.3f}" for run, top in zip(runs, longest, strict=True)
    )
    text = (
        f"{len(users)} users drawn at random, hit or miss; for {hits} of them some run has the next item among its "
        f"ten, marked ✓. Beside each title how sure the run is of it, recalibrated on valid rows ({scales})."
    )
    return [heading("Users"), paragraph(text), _browser(users)]


def _user(runs: list[EvaluatedRun], longest: list[float], shown: Sequence[Shown]) -> User:
    lists = [
        Recommended(run, example["recommended"], top) for run, top, example in zip(runs, longest, shown, strict=True)
    ]
    history = max((example["history"] for example in shown), key=len)
    return User(int(shown[0]["user"]), history, shown[0]["target"], lists)


def _browser(users: list[User]) -> Block:
    """Return the users with a filter: radio buttons work by CSS alone, the search box appears with JavaScript."""
    shown = "".join(map(_html_user, users)).replace("<details ", "<details open ", 1)
    choices = "".join(
        f'<input type="radio" name="filter" id="{name}"{checked}><label for="{name}">{words}</label>'
        for name, words, checked in (
            ("all-users", "all", " checked"),
            ("only-hits", "only hits", ""),
            ("only-misses", "only misses", ""),
        )
    )
    search = (
        '<label class="search" id="search-box" hidden>search titles <input type="search" id="search"></label>'
        '<span class="note" id="found" role="status"></span>'
    )
    return Block(
        "\n\n".join(map(_markdown_user, users)),
        f'<div class="browser">{choices}{search}<div class="users">{shown}</div></div>',
    )


def _html_user(user: User) -> str:
    history = "".join(f"<li>{html.escape(title)}</li>" for title in user.history)
    return (
        f'<details class="user {"hit" if user.hit else "miss"}"><summary><b>User {user.user}</b> next: '
        f'{html.escape(user.target)} <span class="outcome">{html.escape(user.outcome)}</span></summary>'
        f'<div class="lists"><section><h4>History</h4><ol>{history}</ol>'
        f'<p class="next">Next: <b>{html.escape(user.target)}</b></p></section>'
        f"{''.join(map(_html_list, user.lists))}</div></details>"
    )


def _html_list(found: Recommended) -> str:
    items = [
        f'<li class="{"hit" if item["hit"] else "miss"}">'
        f'<span class="title">{html.escape(item["title"])}{" ✓" if item["hit"] else ""}</span>'
        f'<span class="bar"><i style="width:{100 * found.bar(item):.1f}%"></i></span>'
        f'<span class="value">{item["calibrated"]:.3f}</span></li>'
        for item in found.items
    ]
    colour = VARIABLES[colour_of(found.run.number)]
    return (
        f'<section style="--bar: var({colour})"><h4>{html.escape(found.run.label)}</h4>'
        f'<ol class="recommended">{"".join(items)}</ol></section>'
    )


def _markdown_user(user: User) -> str:
    width = max(len(found.items) for found in user.lists)
    head = ["#", *(plain(found.run.label) for found in user.lists)]
    rows = [[str(rank + 1), *(_markdown_item(found, rank) for found in user.lists)] for rank in range(width)]
    lines = [f"| {' | '.join(row)} |" for row in [head, ["--:", *[":--"] * len(user.lists)], *rows]]
    return "\n".join(
        [
            f"<details><summary>User {user.user}: {html.escape(user.outcome)}</summary>\n",
            f"History: {' → '.join(map(plain, user.history))}\n",
            f"Next: **{plain(user.target)}**\n",
            *lines,
            "\n</details>",
        ]
    )


def _markdown_item(found: Recommended, rank: int) -> str:
    if rank >= len(found.items):
        return DASH
    item = found.items[rank]
    title = f"**{plain(item['title'])}** ✓" if item["hit"] else plain(item["title"])
    return f"{title} {'█' * max(1, round(8 * found.bar(item)))} {item['calibrated']:.3f}"
