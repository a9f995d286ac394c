"""Networks as Keras models, and the directories that trained models are stored in.

May import `config`, `scaling`, `ops` and `runtime`. Networks (`builder`, `blocks`, `normalization`) use Keras only, so
they build on every Keras backend.

Public names: `builder.build_model`, and in `model_dir` `restore_model`, `read_config`, `read_class_names` and
`write_model_dir`. `efficientnet_tf.build_model` also loads weights.
"""
