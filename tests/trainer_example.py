"""The lines of the README that read a dataset in the Trainer of transformers."""

import numpy as np
import torch
from transformers import Trainer


def collate(samples):
    tokens = torch.from_numpy(np.stack(samples).astype(np.int64))
    return {"input_ids": tokens, "labels": tokens}  # the model shifts them: seq_len targets


class OrderedTrainer(Trainer):
    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)  # the order is the dataset's
