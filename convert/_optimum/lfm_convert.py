"""What `optimum-cli` finds: installed as `optimum/commands/register/lfm_convert.py`, beside optimum's own files."""

from lfm_convert.convert.cli.optimum import LfmConvertCommand
from optimum.commands.export.base import ExportCommand

REGISTER_COMMANDS = [(LfmConvertCommand, ExportCommand)]
