#include "testing/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <system_error>

#include "moe/base/clock.h"

namespace moe::test {
namespace {

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    read = ends[0], write = ends[1];
  }
};

void Close(int& fd) {
  if (fd >= 0) close(fd);
  fd = -1;
}

// Appends what is there; closes at the end.
void Drain(int& fd, std::string& to) {
  char buffer[1 << 16];
  const ssize_t n = read(fd, buffer, sizeof(buffer));
  if (n > 0) {
    to.append(buffer, static_cast<size_t>(n));
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    Close(fd);
  }
}

}  // namespace

Subprocess::Subprocess(std::vector<std::string> command, const RunOptions& options)
    : start_s_(NowSeconds()), timeout_s_(options.timeout_s), input_(options.input) {
  signal(SIGPIPE, SIG_IGN);  // a program that ends without reading its input must not end the test
  // All that allocates happens before the fork: the test may have threads.
  std::vector<std::string> env_strings;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string entry = *e;
    const auto replaced = [&](const auto& added) { return entry.starts_with(added.first + "="); };
    if (std::ranges::none_of(options.environment, replaced)) env_strings.push_back(entry);
  }
  for (const auto& [name, value] : options.environment) env_strings.push_back(name + "=" + value);
  std::vector<char*> argv, env;
  for (auto& s : command) argv.push_back(s.data());
  for (auto& s : env_strings) env.push_back(s.data());
  argv.push_back(nullptr), env.push_back(nullptr);

  Pipe in, out, err, failure;
  pid_ = fork();
  if (pid_ < 0) throw std::runtime_error("fork");
  if (pid_ == 0) {
    dup2(in.read, 0), dup2(out.write, 1), dup2(err.write, 2);
    signal(SIGPIPE, SIG_DFL);
    bool ok = options.folder.empty() || chdir(options.folder.c_str()) == 0;
    if (options.max_file_bytes >= 0) {
      const auto bytes = static_cast<rlim_t>(options.max_file_bytes);
      const rlimit limit{bytes, bytes};
      ok = ok && setrlimit(RLIMIT_FSIZE, &limit) == 0 && signal(SIGXFSZ, SIG_IGN) != SIG_ERR;
    }
    if (options.max_memory_bytes >= 0) {
      const auto bytes = static_cast<rlim_t>(options.max_memory_bytes);
      const rlimit limit{bytes, bytes};
      ok = ok && setrlimit(RLIMIT_AS, &limit) == 0;
    }
    if (ok) execvpe(argv[0], argv.data(), env.data());
    const int error = errno;
    if (write(failure.write, &error, sizeof(error)) < 0) _exit(126);
    _exit(127);
  }
  close(in.read), close(out.write), close(err.write), close(failure.write);
  in_ = in.write, out_ = out.read, err_ = err.read;
  int error = 0;
  const bool failed = read(failure.read, &error, sizeof(error)) > 0;
  close(failure.read);
  if (failed) {
    Reap(true);
    Close(in_), Close(out_), Close(err_);
    throw std::system_error(error, std::generic_category(), "cannot run " + command[0]);
  }
  for (const int fd : {in_, out_, err_}) fcntl(fd, F_SETFL, O_NONBLOCK);
}

Subprocess::~Subprocess() {
  if (!ended_) {
    kill(pid_, SIGKILL);
    Reap(true);
  }
  Close(in_), Close(out_), Close(err_);
}

void Subprocess::Reap(bool block) {
  if (ended_) return;
  int status = 0;
  rusage usage{};
  if (wait4(pid_, &status, block ? 0 : WNOHANG, &usage) != pid_) return;
  ended_ = true;
  if (WIFEXITED(status)) result_.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result_.signal = WTERMSIG(status);
  result_.peak_resident_bytes = static_cast<int64_t>(usage.ru_maxrss) * 1024;
  result_.seconds = NowSeconds() - start_s_;
}

bool Subprocess::Pump(double seconds) {
  if (in_ >= 0 && written_ == input_.size()) Close(in_);
  pollfd fds[3] = {{in_, POLLOUT, 0}, {out_, POLLIN, 0}, {err_, POLLIN, 0}};  // poll skips a negative fd
  const int ready = poll(fds, 3, std::max(1, static_cast<int>(std::min(seconds, out_ < 0 && err_ < 0 ? 0.001 : 0.02) * 1000)));
  if (fds[0].revents != 0) {
    const ssize_t n = write(in_, input_.data() + written_, input_.size() - written_);
    if (n >= 0) written_ += static_cast<size_t>(n);
    if (n < 0 && errno != EAGAIN && errno != EINTR) written_ = input_.size();
  }
  if (fds[1].revents != 0) Drain(out_, result_.out);
  if (fds[2].revents != 0) Drain(err_, result_.err);
  Reap(false);
  return !ended_ || (ready > 0 && (out_ >= 0 || err_ >= 0));
}

bool Subprocess::WaitForOutput(std::string_view text, double timeout_s) {
  const double end = NowSeconds() + timeout_s;
  const auto seen = [&] { return result_.out.find(text) != std::string::npos || result_.err.find(text) != std::string::npos; };
  while (!seen() && NowSeconds() < end && Pump(end - NowSeconds())) {
  }
  return seen();
}

bool Subprocess::WaitFor(double seconds) {
  const double end = NowSeconds() + seconds;
  while (NowSeconds() < end) {
    if (!Pump(end - NowSeconds())) return false;
  }
  return !ended_;
}

void Subprocess::Signal(int signal) {
  Reap(false);
  if (!ended_) kill(pid_, signal);
}

RunResult Subprocess::Wait() {
  while (Pump(0.02)) {
    if (NowSeconds() - start_s_ > timeout_s_ && !ended_ && !result_.timed_out) {
      result_.timed_out = true;
      kill(pid_, SIGKILL);
    }
  }
  return result_;
}

RunResult RunProgram(std::vector<std::string> command, const RunOptions& options) {
  return Subprocess(std::move(command), options).Wait();
}

}  // namespace moe::test
