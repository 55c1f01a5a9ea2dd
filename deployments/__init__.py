import cluster as cluster  # before OpenVINO: it keeps OpenVINO from reporting
