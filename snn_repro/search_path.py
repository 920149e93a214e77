"""What tells Hydra of the folders `conf/` of packages from outside."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from snn_repro import outside


class OutsideConf(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in outside.conf_dirs():
            search_path.append("snn_repro", folder.as_uri())
