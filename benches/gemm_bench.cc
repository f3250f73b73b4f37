// How much of the machine's multiply-add peak, or of its memory's rate, do the matrix products reach, and how do they stand
// beside other libraries? x_NAME: that library's time / ours, in the same rounds.
//   gemm_bench [--benchmark_filter=dense/f32/512x512x512] [--shapes benches/shapes/dense.txt] [--json FILE]
#include "benches/bench_main.h"

int main(int argc, char** argv) {
  return moe::BenchMain(argc, argv, "gemm");
}
