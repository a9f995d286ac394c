"""A tour of the Python API: train on digits, evaluate, predict, export, and draw what the network looks at.

Takes about a minute on a CPU. The cells, marked by `# %%`, also run one by one in Jupyter, VS Code or Spyder.

    python scripts/python_api_example.py
"""

# %% Train a small EfficientNet on the digits that come with scikit-learn.
import tensorflow as tf

import efficientnet_tf as ef
from efficientnet_tf.visualization.heatmap import draw_heat_map

config = ef.load_config("b0", "digits", ["model.width=0.25", "model.depth=0.25", "train.epochs=5"])
print(ef.count_cost(config.model, config.image_size, classes=10))
ef.train_model(config, "runs/digits_tour")

# %% Evaluate it on the test images.
print(ef.evaluate_model("runs/digits_tour"))

# %% Write a digit as an image file, and classify it.
from sklearn.datasets import load_digits  # noqa: E402

pixels = tf.repeat(tf.cast(load_digits().images[7, :, :, None] * 15.9, tf.uint8), 3, axis=2)
tf.io.write_file("runs/seven.png", tf.io.encode_png(pixels))
print(ef.predict_images("runs/digits_tour", ["runs/seven.png"], top=3))

# %% Export it for LiteRT. The file is checked against the Keras model.
print(ef.export_model("runs/digits_tour", "runs/digits.tflite", "float16"))

# %% Draw which pixels speak for the class, at a layer whose output still has 4x4 positions.
model = ef.load_model("runs/digits_tour")
image = model.load_image("runs/seven.png")
heat = ef.grad_cam(model.keras_model, image[None], layer="block4a_expand_activation")[0]
tf.io.write_file("runs/seven_cam.png", tf.io.encode_png(draw_heat_map(image, heat)))
