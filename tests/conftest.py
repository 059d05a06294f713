"""Strict JAX settings for every test; x64 is on unless JAX_ENABLE_X64 says otherwise.

Programs are compiled quickly, in 0.6 of the processor time, but by `-m as_compiled` as users
have them: there digits, memory and what the compiler does are tested.
"""

import gc
import os

import jax
from groups import OF_ALL_MODES, OF_COMPILED_PROGRAMS

jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1").lower() in ("1", "true"))
jax.config.update("jax_num_cpu_devices", 8)  # for the sharding tests
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# For JAX_COMPILATION_CACHE_DIR: programs here are many and small.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
    config.addinivalue_line("markers", "all_modes: public functions in every mode")
    config.addinivalue_line("markers", "once: left out of the pass without x64")
    config.addinivalue_line("markers", "as_compiled: digits, memory or the compiler are tested")
    if not config.option.markexpr.startswith("as_compiled"):  # before JAX has a backend
        from helpers import FAST  # which asks whether x64 is on

        flags = (f"--{name}={value}".lower() for name, value in FAST.items())
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in OF_COMPILED_PROGRAMS:
            item.add_marker("as_compiled")
        if item.path.stem in OF_ALL_MODES:
            item.add_marker("all_modes")
    # What takes long begins first: at the end, one worker would finish it alone.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Spares the collector what the imports have left, and the short life of what is traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
