"""Exceptions that htsrl raises on purpose.

HtsrlError
├── UsageError            user mistake: one-line message, exit code 2
│   ├── ConfigError       invalid value of a configuration key
│   └── CheckpointError   missing, damaged or incompatible checkpoint
└── RunError              failure during a run: exit code 1
    ├── EnvError          exception or invalid result of an environment's own code
    ├── WorkerError       worker that died, raised an exception or hung
    └── NonFiniteError    NaN or infinite loss or gradient
"""


class Stopped(SystemExit):
    """Exit that htsrl itself asks for; any other `SystemExit` comes from other code.

    Args:
        code: exit code of the process.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.status = code


class HtsrlError(Exception):
    """Base class of all exceptions that htsrl raises on purpose.

    Attributes:
        exit_code: exit code of the process when the command line reports the exception.
    """

    exit_code = 1


class UsageError(HtsrlError):
    """User mistake, which the command line reports on one line."""

    exit_code = 2


class ConfigError(UsageError):
    """Invalid value of a configuration key.

    Args:
        key: dotted name of the key, as typed on the command line.
        value: the rejected value.
        remedy: text that says what is wrong and what to do, without a full stop at the end.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        super().__init__(f"{key}={value}: {' '.join(remedy.split())}")
        self.key = key
        self.value = value
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.remedy)


class CheckpointError(UsageError):
    """Checkpoint that is missing, damaged, or made for another version, environment or network."""


class RunError(HtsrlError):
    """Failure during a run."""


class EnvError(RunError):
    """Exception or invalid result of an environment's own code; the message names the place."""


class WorkerError(RunError):
    """Worker that died, raised an exception or hung; the message names it and gives details."""


class NonFiniteError(RunError):
    """NaN or infinite loss or gradient; the message names the loss or the parameter."""
