"""The long description: README.md without what only a clone has, the files that its links and images name."""

import re
from pathlib import Path

from setuptools import setup

TEXT = Path(__file__).with_name("README.md").read_text("utf-8").replace("[中文](README.zh.md)\n", "")
TEXT = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n\n\*[^*]+\*\n\n", "", TEXT)  # a figure and its caption
TEXT = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", TEXT)

setup(long_description=TEXT, long_description_content_type="text/markdown")
