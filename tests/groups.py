"""Files of tests that are run in passes of their own."""

# Where digits, memory or what the compiler does is the subject: by `-m as_compiled` they are run
# with XLA's settings as users have them.
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

# Functions of the package that are not those of logits alone, and the file that has their modes.
FILE_OF = {
    "verify_jacobian_properties": "test_properties",
    "probe_jacobian_properties": "test_properties",
    "gradient_flow": "test_flow",
    "attention_flow": "test_attention_flow",
    "linear_cross_entropy_gauss_newton": "test_linear_gauss_newton",
    "jacobian": "test_transforms",
    "hessian": "test_transforms",
    "hvp": "test_transforms",
    "gauss_newton_product": "test_curvature",
    "fisher_product": "test_curvature",
    "sampled_fisher_product": "test_curvature",
    "gauss_newton_diagonal": "test_curvature",
}

# Each function, operator and optimizer in the modes that it has: on the newest JAX in `.ci/run`.
OF_ALL_MODES = {
    "test_transforms_everywhere",
    "test_composition",
    "test_entmax_operator",
    "test_inference",
    "test_operators_derivatives",
} | set(FILE_OF.values())
