"""The reverse of the reference: gradients of a loss by every activation, written out by hand.

Each kind of block is a file, as in the forward pass. A block's function gives its output and a pull-back, which turns
the gradient by the output into the gradient by the input. Weights have no gradients here: what is asked for is how
much the loss minds an error in what a matrix gives.
"""
