"""The errors that a user can fix; `train.main` prints them as one sentence and exits with code 2 (Interrupted: 128 + signal)."""


class UserError(Exception):
    """One sentence for the user: it names the key or file, the value found and the fix."""


class DataError(UserError):
    """A data file is missing, unreadable or not what its format promises."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGUSR2 arrived; what was under way was saved and the same command continues it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


def nearest(word: str, known) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `known`, or an empty string when nothing is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
