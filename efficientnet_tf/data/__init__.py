"""Sources of labeled images, decoding, augmentation, and the input pipelines.

May import `models` and everything below it. Public names: `load_image.load_image`; `open.open_source`, `source.Source`
and `source.Order`; `listing.check_data` and `scan.find_images`, which need no TensorFlow for local files;
`pipeline.train_dataset`, `pipeline.eval_dataset`, `pipeline.train_image` and `pipeline.eval_image`;
`policies.autoaugment` and `policies.randaugment`; `mixing.mixup` and `mixing.cutmix`; `write_tfrecord.write_records`.
"""
