"""kvkeep as a second level of LMCache: a client for its adapter `native_plugin`, named by `module_path` "kvkeep.lmcache" and
`class_name` "KvkeepClient". It needs kvkeep only.
"""

from .client import KvkeepClient

__all__ = ["KvkeepClient"]
