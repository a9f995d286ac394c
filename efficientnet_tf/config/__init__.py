"""Read YAML files and overrides, and check them against one schema.

Modules:
    schema: Every key of a configuration: its meaning, type, default and checks. The keys of a network are in
        `model_schema`, those of the images in `data_schema`, those of a training run in `training_schema`, and the
        types of values in `fields`.
    load: Variants, recipes and overrides become one `Config`.
    yaml12: The dialect of YAML that the files are written in.
    preprocessing: How an image becomes the pixels of a network, as one value.
    errors: The exception for mistakes that a user can fix.
    text: Decoding of text files, and names that are safe to show.

This is the lowest package. It imports nothing else from `efficientnet_tf`, and no TensorFlow.

Public names, importable from `efficientnet_tf`: `list_variants`, `load_variant`, `load_config`, `Config`, `ModelSpec`,
`Stage`, `DataConfig`, `AugmentConfig`, `OptimizerConfig`, `ScheduleConfig`, `TrainConfig`, `Phase`, `EvalConfig` and
`UserError`.
"""
