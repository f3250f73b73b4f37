#pragma once
// Runs a program as a user would: for tests through the front door.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe::test {

struct RunOptions {
  std::string input;                                             // its stdin, closed after
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  std::string folder;                                            // where it starts; empty: here
  double timeout_s = 120;                                        // then SIGKILL
  int64_t max_file_bytes = -1;    // a longer file fails with EFBIG, as on a full disk; -1: no limit
  int64_t max_memory_bytes = -1;  // of address space; sanitizers need terabytes of it; -1: no limit
};

struct RunResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  bool timed_out = false;
  std::string out, err;
  double seconds = 0;
  int64_t peak_resident_bytes = 0;
};

// A program under way. Throws where it cannot be started. The destructor kills what still runs.
class Subprocess {
 public:
  Subprocess(std::vector<std::string> command, const RunOptions& options = {});
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  // Waits until stdout or stderr holds the text; false when it ended, or the time was up, without.
  bool WaitForOutput(std::string_view text, double timeout_s = 60);
  bool WaitFor(double seconds);  // lets it run; false when it ended before
  void Signal(int signal);
  RunResult Wait();  // until it ends or the time is up

 private:
  bool Pump(double seconds);  // moves what the pipes hold; false when it ended and they are empty
  void Reap(bool block);

  pid_t pid_ = -1;
  bool ended_ = false;
  double start_s_ = 0, timeout_s_ = 0;
  int in_ = -1, out_ = -1, err_ = -1;
  std::string input_;
  size_t written_ = 0;
  RunResult result_;
};

RunResult RunProgram(std::vector<std::string> command, const RunOptions& options = {});

}  // namespace moe::test
