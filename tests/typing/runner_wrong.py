"""Every marked line of this is wrong."""

from setpoint.runner import Group, Intermittent, PollState, Scope, Service, poll, run


async def fetch() -> int:
    return 5


async def with_argument(number: int) -> int:
    return number


async def on_attempt(state: PollState) -> bool:
    return True


def on_attempt_text(state: PollState, error: Exception | None) -> str:
    return "no"


async def start() -> int:
    return 5


async def only_scope(scope: Scope) -> None: ...


async def numbers(scope: Scope, config: list[int]) -> None: ...


def parse_text(config: bytes) -> str:
    return str(config)


def parse_from_text(config: str) -> list[int]:
    return [int(config)]


async def main() -> None:
    text: str = await run(fetch)  # wrong
    await run(with_argument)  # wrong
    await run(fetch, retry="three")  # wrong
    await run(fetch, backoff="1s")  # wrong
    group = Group[str]()
    group.spawn("a", with_argument)  # wrong
    group.spawn("a", fetch, tries=3)  # wrong
    group.spawn(5, fetch)  # wrong
    poll(with_argument)  # wrong
    poll(fetch, on_attempt=on_attempt)  # wrong
    poll(fetch, on_attempt=on_attempt_text)  # wrong
    Intermittent(start)  # wrong
    Service(only_scope)  # wrong
    Service(numbers, parser=parse_text)  # wrong
    Service(numbers, parser=parse_from_text)  # wrong
    print(text)
