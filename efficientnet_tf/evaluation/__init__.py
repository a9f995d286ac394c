"""Evaluates classifiers: accuracy, results per class, ImageNet's label sets, and class activation maps.

May import `weights`, `data`, `models` and everything below them. Import from its modules: `loop.make_evaluator`,
`per_class.per_class`, `imagenet_labels.match_classes`, `attribution.class_activation_map`, `attribution.grad_cam`.
"""
