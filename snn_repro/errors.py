"""The errors that a user can fix; `cli.main` prints them as one sentence and exits with code 2 (Interrupted: 128 + signal)."""

import re
from difflib import get_close_matches


class UserError(Exception):
    """One sentence for the user: it names the key or file, the value found and the fix."""


class DataError(UserError):
    """A data file is missing, unreadable or not what its format promises."""


class TrainingError(UserError):
    """Training cannot go on: the loss is not finite."""


class Interrupted(KeyboardInterrupt):
    """A signal that asks to stop arrived (signals.py); what was under way was saved and the same command continues it."""

    def __init__(self, signum: int, where: str):
        super().__init__(where)
        self.signum = signum


def nearest(word: str, known) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `known`, or an empty string when nothing is close."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


OF_TRAINING = (
    "recipe.accumulate=2 (or more) splits a batch into parts, model.checkpointing=blocks keeps less for the backward pass, and "
    "recipe.batch_size or recipe.eval_batch_size can be made smaller"
)


def in_one_sentence(error: BaseException, advice: str = OF_TRAINING) -> BaseException:
    """The error itself, or a UserError where torch raises a bare RuntimeError for what a user can mend.

    advice: what saves memory.
    """
    bare = isinstance(error, RuntimeError)
    if bare and "DataLoader worker" in str(error):
        return UserError(
            f"a loader process died ({' '.join(str(error).split())[:120]}), killed or out of memory; the same command "
            "continues from the last checkpoint, with dataset.workers=0 if it happens again"
        )
    if isinstance(error, MemoryError) or (bare and re.search(r"out of memory|can't allocate memory", str(error))):
        said = " ".join(str(error).split())[:120] or "MemoryError"
        return UserError(f"out of memory ({said}); {advice}")
    return error
