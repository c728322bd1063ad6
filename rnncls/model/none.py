"""What stands in the place of recurrent layers in a model that has none: the n-gram control."""

from torch import Tensor, nn


class NoRecurrence(nn.Module):
    """Recurrent layers that there are none of: the outputs are the inputs, and there is no state.

    It has the attributes of torch.nn.RNNBase that others ask for; `num_layers` is 0.
    """

    mode = "NONE"
    num_layers = 0
    bias = False
    bidirectional = False
    dropout = 0.0

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = input_size  # the width of the outputs
        self.all_weights: list[list[Tensor]] = []
