// The subject "attention" of `moe bench`, as a Google Benchmark binary: see gemm_bench.cc.
#include "benches/bench_main.h"

int main(int argc, char** argv) {
  return moe::BenchMain(argc, argv, "attention");
}
