"""Saving and loading of models and files: they are written whole or not at all, and read without unpickling."""

from nflib.io.arguments import keep_arguments
from nflib.io.arrays import read_arrays, write_arrays
from nflib.io.atomic import check_writable, complete_file, complete_folder, only_run
from nflib.io.documents import differences, read_json, read_lines, write_json
from nflib.io.pretrained import Pretrained, read_config
from nflib.io.state_dicts import load_renamed, read_state_dict
from nflib.io.tensors import fingerprint

__all__ = [
    "Pretrained",
    "check_writable",
    "complete_file",
    "complete_folder",
    "differences",
    "fingerprint",
    "keep_arguments",
    "load_renamed",
    "only_run",
    "read_arrays",
    "read_config",
    "read_json",
    "read_lines",
    "read_state_dict",
    "write_arrays",
    "write_json",
]
