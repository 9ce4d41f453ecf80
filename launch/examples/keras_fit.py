"""Network slimming with `fit` of Keras: python launch/examples/keras_fit.py [EPOCHS]"""

import os
import sys

os.environ['KERAS_BACKEND'] = 'jax'

import keras
from keras import layers
import numpy as np
from sklearn.datasets import load_digits

import slim_jax


def network():
  x = inputs = keras.Input((8, 8, 1))
  for width in (32, 64):
    x = layers.Conv2D(width, 3, padding='same', use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
  return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def run(model, epochs, name, callbacks=()):
  learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 30 * max(epochs, 1))
  sgd = keras.optimizers.SGD(learning_rate, momentum=0.9)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(sgd, loss, metrics=['accuracy'])
  if epochs:
    model.fit(x, y, batch_size=50, epochs=epochs, verbose=0, callbacks=list(callbacks))
  _, accuracy = model.evaluate(x_test, y_test, verbose=0)
  print(f'{name}: {accuracy:.1%} of the test images are right')


epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
images, labels = load_digits(return_X_y=True)
x, x_test = np.split((images.reshape(-1, 8, 8, 1) / 16).astype('float32'), [1500])
y, y_test = np.split(labels.astype('int32'), [1500])
model = network()
run(model, epochs, 'sparse', [slim_jax.keras.AddL1(1e-3), slim_jax.keras.ScaleShares()])
thin, info = slim_jax.keras.slim(model, x[:1], fraction=0.5, per_layer=True)
print(info)
run(thin, 0, 'pruned')
run(thin, epochs, 'fine-tuned')
