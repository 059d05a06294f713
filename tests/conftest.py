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


# Where digits, memory or what the compiler does is the subject, so that `.ci/run` leaves XLA's
# settings as users have them. Elsewhere it compiles the quick way.
OF_COMPILED_PROGRAMS = {
    "test_accuracy",
    "test_accuracy_command",
    "test_attention",
    "test_attention_accuracy",
    "test_attention_scores",
    "test_cluster",
    "test_cross_entropy",
    "test_divergences",
    "test_hostile_rows",
    "test_inspect_memory",
    "test_linear_cross_entropy",
    "test_linear_target",
    "test_operators_accuracy",
    "test_peaked_rows",
    "test_planning",
    "test_real_sizes",
    "test_secular",
    "test_sparse_hostile_rows",
}


def pytest_configure(config):
    config.addinivalue_line("markers", "once: left out of the pass without x64")
    config.addinivalue_line("markers", "as_compiled: digits, memory or the compiler are tested")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in OF_COMPILED_PROGRAMS:
            item.add_marker("as_compiled")
    # What takes long begins first: at the end, one worker would finish it alone.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Spares the collector what the imports have left, and the short life of what is traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
