"""What a command may fail with: every error names the input, the cause and the mend."""

from workflows.urls import without_secrets


class OneFlowError(Exception):
    """A failure that a user can act on; the command ends with `exit_code`.

    `what` names the input that failed, `cause` why, `mend` what to do about it; URLs lose their secrets.
    """

    exit_code = 1

    def __init__(self, what: str, cause: str, mend: str) -> None:
        what, cause, mend = (without_secrets(part) for part in (what, cause, mend))
        super().__init__(what, cause, mend)
        self.what = what
        self.cause = cause
        self.mend = mend

    def __str__(self) -> str:
        """One paragraph, whatever newlines the parts held."""
        return " ".join(f"{self.what}: {self.cause}; {self.mend}".split())


class UsageError(OneFlowError):
    """The command line or the config is wrong; nothing was done."""

    exit_code = 2


class Refused(OneFlowError):
    """A gate or a verification said no; what it judged is unchanged."""

    exit_code = 3
