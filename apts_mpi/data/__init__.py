"""Data sets: sources, shards on disk, and the part of them that each rank reads."""

from apts_mpi.data.minibatches.streaming import Stream
from apts_mpi.data.shards.index import read_index
from apts_mpi.data.shards.info import DatasetInfo, windowed
from apts_mpi.data.shards.inspecting import describe
from apts_mpi.data.shards.reading import Partition, check_files, read_info, read_partition, unread
from apts_mpi.data.shards.writing import write_shards
from apts_mpi.data.sources.load import SOURCES, cache_directory, load_source
from apts_mpi.data.sources.source import Source, TextSource
from apts_mpi.data.sources.text import load_text

__all__ = [
    "SOURCES",
    "DatasetInfo",
    "Partition",
    "Source",
    "Stream",
    "TextSource",
    "cache_directory",
    "check_files",
    "describe",
    "load_source",
    "load_text",
    "read_index",
    "read_info",
    "read_partition",
    "unread",
    "windowed",
    "write_shards",
]
