"""Data sets: sources, shards on disk, and the part of them that each rank reads."""

from apts_mpi.data.info import DatasetInfo, windowed
from apts_mpi.data.inspecting import describe
from apts_mpi.data.reading import Partition, read_info, read_partition
from apts_mpi.data.sources import SOURCES, Source, cache_directory, load_source
from apts_mpi.data.streaming import Stream
from apts_mpi.data.text import TextSource, load_text
from apts_mpi.data.writing import write_shards

__all__ = [
    "SOURCES",
    "DatasetInfo",
    "Partition",
    "Source",
    "Stream",
    "TextSource",
    "cache_directory",
    "describe",
    "load_source",
    "load_text",
    "read_info",
    "read_partition",
    "windowed",
    "write_shards",
]
