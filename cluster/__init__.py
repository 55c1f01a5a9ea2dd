import sys

# OpenVINO tells Intel of each import of it, over the network (openvino 2026.4), unless what sends that is not there.
# Every process of Dray imports this package before OpenVINO.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # how Python marks what is not to be found
