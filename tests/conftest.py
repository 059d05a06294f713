"""Strict JAX settings for every test; x64 is on unless JAX_ENABLE_X64 says otherwise."""

import gc
import os

import jax

jax.config.update("jax_enable_x64", os.environ.get("JAX_ENABLE_X64", "1").lower() in ("1", "true"))
jax.config.update("jax_num_cpu_devices", 8)  # for the sharding tests
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# For JAX_COMPILATION_CACHE_DIR: programs here are many and small.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_configure(config):
    config.addinivalue_line("markers", "once: the same programs whether x64 is on or off")


def pytest_collection_finish():
    """Spares the collector what the imports have left, which it would walk at each full round."""
    gc.collect()
    gc.freeze()
