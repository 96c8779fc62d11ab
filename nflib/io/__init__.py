"""Models and files on disk: whole or not at all, described by what their constructors got, and never unpickled."""

from nflib.io.arguments import keep_arguments
from nflib.io.atomic import complete_file, complete_folder, only_run, write_json
from nflib.io.pretrained import Pretrained, read_config
from nflib.io.state_dicts import load_renamed, read_state_dict

__all__ = [
    "Pretrained",
    "complete_file",
    "complete_folder",
    "keep_arguments",
    "load_renamed",
    "only_run",
    "read_config",
    "read_state_dict",
    "write_json",
]
