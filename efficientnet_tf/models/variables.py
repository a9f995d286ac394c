"""Which variables of a model are trained, decayed or updated without a gradient."""


def decayed_variables(model):
    """Return the trainable variables that weight decay acts on: all but batch norm's scale and offset."""
    return [v for v in model.trainable_variables if v.name not in ("gamma", "beta")]


def batch_norm_statistics(model):
    """Return batch norm's moving means and variances: what is learnt without a gradient."""
    return [v for v in model.non_trainable_variables if v.name in ("moving_mean", "moving_variance")]


def trained_statistics(model):
    """Return the statistics that training moves: a frozen batch norm leaves its own as they are."""
    still = {id(v) for layer in model.layers if not layer.trainable for v in layer.variables}
    return [v for v in batch_norm_statistics(model) if id(v) not in still]
