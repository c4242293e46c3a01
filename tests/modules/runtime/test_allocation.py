"""Freed memory serves what comes next, without a page fault."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from modules.runtime.allocation import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_a_block(memory):
    """Page faults of a block of 64 MB that follows others which are freed."""
    command = [sys.executable, "-c", PROGRAM, memory]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="another C library than glibc")
def test_the_next_block_needs_no_new_pages():
    assert faults_of_a_block("given back") > 1000
    assert faults_of_a_block("kept") < 10
