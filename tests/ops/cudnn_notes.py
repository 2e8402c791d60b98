"""A stand-in for the frontend of cuDNN that takes notes of what it is told, and the clock of its GPU."""

import types


class Value:
    """A tensor of cuDNN's."""

    def __init__(self, made_by, **args):
        self.made_by, self.args, self.told = made_by, args, {}

    def __getattr__(self, name):
        if not name.startswith("set_"):
            raise AttributeError(name)
        return lambda value: self.told.update({name[4:]: value}) or self


METHODS = ["tensor", "conv_fprop", "conv_dgrad", "leaky_relu", "leaky_relu_backward", "reduction", "mul", "add"]


class Pygraph:
    """cuDNN's graph as the frontend offers it: notes how it is described, built and run."""

    def __init__(self, cudnn, **args):
        self.cudnn, self.args, self.values, self.built = cudnn, args, [], []
        cudnn.graphs.append(self)

    def __getattr__(self, name):
        if name not in (
            "tensor",
            "conv_fprop",
            "conv_dgrad",
            "leaky_relu",
            "leaky_relu_backward",
            "reduction",
            "mul",
            "add",
        ):
            raise AttributeError(name)

        def note(**args):
            self.values.append(Value(name, **args))
            return self.values[-1]

        return note

    def validate(self):
        if self.cudnn.refuses:
            raise RuntimeError(f"{self.cudnn.refuses}\nand a long tale of it")

    def build_operation_graph(self):
        pass

    def create_execution_plans(self, modes):
        assert modes == ["A", "FALLBACK"]

    def get_execution_plan_count(self):
        return len(self.cudnn.engines)

    def get_plan_name_at_index(self, index):
        return self.cudnn.engines[index][0]

    def build_plan_at_index(self, index):
        if self.cudnn.engines[index][1] is None:
            raise RuntimeError("no")
        self.built.append(index)

    def get_workspace_size_plan_at_index(self, index):
        return 100 + index

    def get_workspace_size(self):
        return 7

    def execute_plan_at_index(self, pointers, space, index, handle):
        self.cudnn.clock += self.cudnn.engines[index][1]
        self.cudnn.ran.append((pointers, space.numel(), index, handle))

    def execute(self, pointers, space, handle):
        self.cudnn.ran.append((pointers, space.numel(), None, handle))

    def serialize(self):
        return b"plan %d" % self.built[-1]  # as cuDNN does: the last that was built

    def deserialize(self, data):
        if not bytes(data).startswith(b"plan "):
            raise RuntimeError("damaged")
        self.read = bytes(data)


class Frontend:
    """The module cudnn. engines: (name, how long a run takes, or None where it doesn't build)."""

    data_type = types.SimpleNamespace(BFLOAT16="bf16", HALF="fp16", FLOAT="fp32")
    heur_mode = types.SimpleNamespace(A="A", FALLBACK="FALLBACK")
    reduction_mode = types.SimpleNamespace(ADD="ADD")

    def __init__(self):
        self.engines, self.refuses, self.version = [("slow", 3), ("fast", 1), ("broken", None)], None, 92400
        self.graphs, self.ran, self.streams, self.clock = [], [], [], 0

    def backend_version(self):
        return self.version

    def pygraph(self, **args):
        return Pygraph(self, **args)

    def create_handle(self):
        return 42

    def set_stream(self, handle, stream):
        self.streams.append((handle, stream))


class Event:
    def __init__(self, cudnn):
        self.cudnn = cudnn

    def record(self):
        self.at = self.cudnn.clock

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at
