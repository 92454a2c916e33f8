"""Predict before you look: `guess` keeps your prediction, and `answer` shows it again where it is resolved."""

_guesses: dict[str, object] = {}  # for as long as the kernel lives; Run All makes them again


def guess(number: str, choice: object = None) -> None:
    """Record a prediction under a name such as "3.a"; None means that you haven't made one yet."""
    choice = _plain(choice)
    if choice is None or choice is ...:
        _guesses.pop(number, None)
        print(f"Guess {number}: put your choice in place of None and run this cell again. Then read on.")
    else:
        _guesses[number] = choice
        print(f"Guess {number}: you say {choice}. Read on to see.")


def answer(number: str, choice: object) -> None:
    """Say what came out, beside what was guessed. Give what the cells found, so that it is right after a change too."""
    choice = _plain(choice)
    yours = f" You said {_guesses[number]}." if number in _guesses else ""
    print(f"Guess {number}: it's {choice}.{yours}")


def _plain(choice: object) -> object:
    """ " (B) " is "b"."""
    return choice.strip().strip("()").lower() if isinstance(choice, str) else choice
