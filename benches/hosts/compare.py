def compare(options, rates_of):
    return 0
