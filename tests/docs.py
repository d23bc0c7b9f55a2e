"""Runs the Python blocks of a Markdown file, top to bottom in one namespace, as a reader would paste them.

`await` may be used at the top of a block. Time is fake, so a page that waits for an hour is done at once. What a block
prints is compared with the ```text block that follows it at once, if one does. A block fenced as ```python no-run is
left out, and each page says so to its reader.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setpoint.testing import FakeTimeLoop

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of Python."""

    line: int
    """Where its code begins in the file."""
    code: str
    prints: str | None
    """What the page says it prints; None if it says nothing."""


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are meant to be run."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    found = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence["info"].strip() != "python":
            continue
        said = after is not None and after["info"].strip() == "text" and not text[fence.end() : after.start()].strip()
        line = text.count("\n", 0, fence.start("body")) + 1
        found.append(Block(line, fence["body"], after["body"] if said and after is not None else None))
    return found


def run_blocks(page: Path) -> int:
    """Run them all; how many. AssertionError for other output than the page shows, and for tasks left behind."""

    async def run() -> int:
        # A module of its own, so that classes of the page find their names.
        names: dict[str, Any] = types.ModuleType(page.stem).__dict__
        for block in blocks(page):
            printed = io.StringIO()
            # Padded, so that a traceback shows the line of the page.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.redirect_stdout(printed):
                answer = eval(code, names)  # the project's own page
                if inspect.iscoroutine(answer):
                    await answer
            assert block.prints is None or printed.getvalue() == block.prints, (
                f"{page}:{block.line} prints\n{printed.getvalue()}and not\n{block.prints}"
            )
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"{page} leaves tasks behind: {left}"
        return len(blocks(page))

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(run())
