"""The command, as in the tests of the command line."""

from tests.cli.conftest import reftune  # noqa: F401 — a fixture
