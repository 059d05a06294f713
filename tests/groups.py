"""Files of tests that are run in passes of their own."""

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


# Which together hold every public function in every mode: `.ci/run` runs them on the newest JAX,
# `.ci/strict` under strict settings.
OF_ALL_MODES = {
    "test_composition",
    "test_curvature",
    "test_entmax_operator",
    "test_flow",
    "test_attention_flow",
    "test_inference",
    "test_linear_gauss_newton",
    "test_operators_derivatives",
    "test_properties",
    "test_transforms",
    "test_transforms_everywhere",
}
