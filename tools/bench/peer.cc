#include "tools/bench/peer.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/unique_fd.h"

namespace kvtier::bench {

extern const char kPeerText[];  // peer_text.cc, made of peer.py

namespace {

Result<std::array<UniqueFd, 2>> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::kIo, "cannot make a pipe", errno);
  return std::array<UniqueFd, 2>{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

Result<Peer> Peer::start(const std::string& python) {
  if (python.empty()) return error(Code::kNotFound, "no Python with torch: pass --python PATH");
  ::signal(SIGPIPE, SIG_IGN);  // a Python that ended shows in its answer
  KVT_TRY(auto questions, make_pipe());
  KVT_TRY(auto answers, make_pipe());
  Peer peer;
  peer.pid_ = ::fork();
  if (peer.pid_ < 0) return error(Code::kIo, "cannot start Python", errno);
  if (peer.pid_ == 0) {
    ::dup2(questions[0].get(), 0);
    ::dup2(answers[1].get(), 1);
    ::execl(python.c_str(), python.c_str(), "-c", kPeerText, nullptr);
    ::_exit(127);
  }
  peer.to_ = ::fdopen(questions[1].release(), "w");
  peer.from_ = ::fdopen(answers[0].release(), "r");
  questions[0].reset();
  answers[1].reset();
  if (!peer.answer())
    return error(Code::kNotFound, "this Python has no torch or no safetensors: pass --python PATH");
  return peer;
}

Peer::Peer(Peer&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      to_(std::exchange(other.to_, nullptr)),
      from_(std::exchange(other.from_, nullptr)) {}

Peer::~Peer() {
  if (pid_ < 0) return;
  std::fclose(to_);  // its input ends, and so does it
  std::fclose(from_);
  ::waitpid(pid_, nullptr, 0);
}

Result<double> Peer::ask(const std::string& line) {
  std::fprintf(to_, "%s\n", line.c_str());
  std::fflush(to_);
  return answer();
}

Result<double> Peer::answer() {
  char line[1024];
  if (std::fgets(line, sizeof line, from_) == nullptr)
    return error(Code::kIo, "the Python of the peers ended; its message is above");
  if (std::strncmp(line, "ok ", 3) == 0) return std::strtod(line + 3, nullptr);
  std::fprintf(stderr, "kvtier-bench: peer: %s", line);
  return error(Code::kIo, "the Python of the peers could not do it; its message is above");
}

}  // namespace kvtier::bench
