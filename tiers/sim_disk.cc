// Files, names and syncs of the simulated disk. What a power cut does to them is in
// sim_disk_crash.cc.
#include "tiers/sim_disk.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "tiers/sim_disk_state.h"

namespace kvtier {
namespace {

std::string_view parent_of(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

// "a//b/./c/" and "/a/b/c" become "a/b/c"; the root becomes "".
Result<std::string> normal_path(std::string_view path) {
  std::string normal;
  while (!path.empty()) {
    const std::size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    if (part == "..") return error(Code::kInvalid, "paths hold no '..'");
    if (!part.empty() && part != ".") {
      if (!normal.empty()) normal += '/';
      normal += part;
    }
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return normal;
}

bool touches_directory(const SimNameChange& change, std::string_view directory) {
  return (!change.from.empty() && parent_of(change.from) == directory) ||
         (!change.to.empty() && parent_of(change.to) == directory);
}

}  // namespace

// ---- contents ----

SimView::Page& SimView::own(std::uint64_t index) {
  std::shared_ptr<Page>& page = pages_[static_cast<std::size_t>(index)];
  if (page == nullptr) page = std::make_shared<Page>();
  if (page.use_count() > 1) page = std::make_shared<Page>(*page);
  return *page;
}

void SimView::read(std::uint64_t offset, MutableByteSpan target) const {
  KVT_CHECK(offset <= size_bytes_ && target.size() <= size_bytes_ - offset);
  std::size_t done = 0;
  while (done < target.size()) {
    const std::uint64_t at = offset + done;
    const std::size_t inside = static_cast<std::size_t>(at % kSimPageBytes);
    const std::size_t count =
        std::min(target.size() - done, static_cast<std::size_t>(kSimPageBytes) - inside);
    const auto& page = pages_[static_cast<std::size_t>(at / kSimPageBytes)];
    if (page == nullptr)
      std::memset(target.data() + done, 0, count);
    else
      std::memcpy(target.data() + done, page->data() + inside, count);
    done += count;
  }
}

void SimView::write(std::uint64_t offset, ByteSpan source) {
  if (source.empty()) return;
  if (offset + source.size() > size_bytes_) resize(offset + source.size());
  std::size_t done = 0;
  while (done < source.size()) {
    const std::uint64_t at = offset + done;
    const std::size_t inside = static_cast<std::size_t>(at % kSimPageBytes);
    const std::size_t count =
        std::min(source.size() - done, static_cast<std::size_t>(kSimPageBytes) - inside);
    std::memcpy(own(at / kSimPageBytes).data() + inside, source.data() + done, count);
    done += count;
  }
}

void SimView::resize(std::uint64_t size_bytes) {
  const std::uint64_t inside = size_bytes % kSimPageBytes;
  pages_.resize(static_cast<std::size_t>(align_up(size_bytes, kSimPageBytes) / kSimPageBytes));
  // What lies beyond the end is zero, so that growing again shows zeros.
  if (size_bytes < size_bytes_ && inside != 0 && pages_.back() != nullptr)
    std::memset(own(pages_.size() - 1).data() + inside, 0,
                static_cast<std::size_t>(kSimPageBytes - inside));
  size_bytes_ = size_bytes;
}

void SimView::flip_bit(std::uint64_t offset, std::uint32_t bit) {
  if (offset >= size_bytes_) return;
  own(offset / kSimPageBytes)[static_cast<std::size_t>(offset % kSimPageBytes)] ^= std::byte{1}
                                                                                   << (bit % 8);
}

// ---- state ----

void apply_names(const SimNameChange& change, SimNames* names) {
  if (!change.from.empty()) names->erase(change.from);
  if (!change.to.empty()) (*names)[change.to] = change.node;
}

Result<std::string> SimDisk::State::place(std::string_view path) const {
  KVT_TRY(std::string normal, normal_path(path));
  const std::string_view parent = parent_of(normal);
  if (parent.empty()) return normal;
  const auto found = names.find(parent);
  if (found == names.end()) return error(Code::kNotFound, "no such directory");
  if (!found->second->directory) return error(Code::kInvalid, "a file is no directory");
  return normal;
}

Result<SimNodePtr> SimDisk::State::file(std::string_view path) const {
  KVT_TRY(const std::string normal, normal_path(path));
  const auto found = names.find(normal);
  if (found == names.end()) return error(Code::kNotFound, "no such file");
  if (found->second->directory) return error(Code::kInvalid, "it is a directory");
  return found->second;
}

Result<SimNodePtr> SimDisk::State::create(std::string_view path, bool must_be_new) {
  KVT_TRY(std::string name, place(path));
  if (name.empty()) return error(Code::kInvalid, "a file name is missing");
  if (const auto found = names.find(name); found != names.end()) {
    if (must_be_new) return error(Code::kExists, "the file exists");
    return file(name);
  }
  auto node = std::make_shared<SimNode>();
  change_names({"", std::move(name), node});
  return node;
}

Result<void> SimDisk::State::read(const SimNode& node, std::uint64_t offset, MutableByteSpan target,
                                  std::uint64_t* got) {
  *got = 0;
  if (options.read_error_one_in != 0 && random.one_in(options.read_error_one_in))
    return error(Code::kIo, "simulated read error", 5);
  const std::uint64_t size = node.now.size_bytes();
  if (offset >= size) return {};
  *got = std::min<std::uint64_t>(target.size(), size - offset);
  node.now.read(offset, target.first(static_cast<std::size_t>(*got)));
  return {};
}

bool SimDisk::State::grow(SimNode& node, std::uint64_t size_bytes) {
  const std::uint64_t old = node.now.size_bytes();
  if (size_bytes <= old || !node.linked) return true;
  const std::uint64_t free =
      options.capacity_bytes > used_bytes ? options.capacity_bytes - used_bytes : 0;
  if (size_bytes - old > free) return false;
  used_bytes += size_bytes - old;
  return true;
}

Result<void> SimDisk::State::write(SimNode& node, std::uint64_t offset, ByteSpan source) {
  if (source.size() > UINT64_MAX / 2 - offset)
    return error(Code::kTooLarge, "beyond the largest file");
  Result<void> result;
  if (options.write_error_one_in != 0 && random.one_in(options.write_error_one_in)) {
    // A failed write may have done some of its sectors.
    const std::uint64_t sectors = random.below(source.size() / kSimSectorBytes + 1);
    source = source.first(static_cast<std::size_t>(sectors * kSimSectorBytes));
    result = error(Code::kIo, "simulated write error", 5);
  }
  if (source.empty()) return result;
  if (!grow(node, offset + source.size()))
    return error(Code::kNoSpace, "the simulated disk is full", 28);
  node.now.write(offset, source);
  node.unsynced.push_back({false, offset, {source.begin(), source.end()}});
  return result;
}

Result<void> SimDisk::State::resize(SimNode& node, std::uint64_t size_bytes) {
  const std::uint64_t old = node.now.size_bytes();
  if (size_bytes == old) return {};
  if (size_bytes > UINT64_MAX / 2) return error(Code::kTooLarge, "beyond the largest file");
  if (!grow(node, size_bytes)) return error(Code::kNoSpace, "the simulated disk is full", 28);
  if (size_bytes < old && node.linked) used_bytes -= old - size_bytes;
  node.now.resize(size_bytes);
  node.unsynced.push_back({true, size_bytes, {}});
  return {};
}

bool SimDisk::State::count_sync() noexcept { return syncs++ != skip_sync_at; }

Result<void> SimDisk::State::sync(SimNode& node) {
  if (!count_sync()) {
    node.sync_skipped = !node.unsynced.empty();
    skipped = node.sync_skipped ? SkippedSync::kMissing : SkippedSync::kIdle;
    return {};
  }
  if (options.write_error_one_in != 0 && random.one_in(options.write_error_one_in)) {
    if (!node.direct) fail_sync(node);
    return error(Code::kIo, "simulated sync error", 5);
  }
  if (node.unsynced.empty()) return {};
  if (!node.differs) node.durable = node.now;
  for (const SimChange& change : node.unsynced) {
    if (!node.differs) break;
    change.resize ? node.durable.resize(change.offset)
                  : node.durable.write(change.offset, change.bytes);
  }
  node.unsynced.clear();
  if (std::exchange(node.sync_skipped, false)) skipped = SkippedSync::kCovered;
  return {};
}

void SimDisk::State::change_names(SimNameChange change) {
  const auto unlink_node = [&](const std::string& name) {
    const auto found = names.find(name);
    if (found == names.end() || found->second == change.node) return;
    found->second->linked = false;
    used_bytes -= found->second->now.size_bytes();
  };
  if (!change.from.empty()) unlink_node(change.from);
  if (!change.to.empty()) unlink_node(change.to);
  apply_names(change, &names);
  if (change.node != nullptr) change.node->linked = true;
  unsynced_names.push_back(std::move(change));
}

Result<void> SimDisk::State::unlink(std::string_view path, bool directories_too) {
  KVT_TRY(std::string name, normal_path(path));
  const auto found = names.find(name);
  if (found == names.end()) return error(Code::kNotFound, "no such file");
  if (found->second->directory) {
    if (!directories_too) return error(Code::kInvalid, "it is a directory");
    const auto child = names.lower_bound(name + "/");
    if (child != names.end() && parent_of(child->first) == name)
      return error(Code::kExists, "the directory is not empty");
  }
  change_names({std::move(name), "", nullptr});
  return {};
}

// ---- the class ----

SimDisk::SimDisk(SimDiskOptions options) : state_(std::make_unique<State>(options)) {}
SimDisk::~SimDisk() = default;

Result<void> SimDisk::create(std::string_view path, bool must_be_new) {
  KVT_TRY_VOID(state_->create(path, must_be_new));
  return {};
}

bool SimDisk::exists(std::string_view path) const {
  const Result<std::string> name = normal_path(path);
  return name && (name->empty() || state_->names.contains(*name));
}

Result<std::uint64_t> SimDisk::size_bytes(std::string_view path) const {
  KVT_TRY(const SimNodePtr node, state_->file(path));
  return node->now.size_bytes();
}

Result<void> SimDisk::read(std::string_view path, std::uint64_t offset, MutableByteSpan target,
                           std::uint64_t* got) const {
  *got = 0;
  KVT_TRY(const SimNodePtr node, state_->file(path));
  return state_->read(*node, offset, target, got);
}

Result<void> SimDisk::write(std::string_view path, std::uint64_t offset, ByteSpan source) {
  KVT_TRY(const SimNodePtr node, state_->file(path));
  return state_->write(*node, offset, source);
}

Result<void> SimDisk::resize(std::string_view path, std::uint64_t size_bytes) {
  KVT_TRY(const SimNodePtr node, state_->file(path));
  return state_->resize(*node, size_bytes);
}

Result<void> SimDisk::sync(std::string_view path) {
  KVT_TRY(const SimNodePtr node, state_->file(path));
  return state_->sync(*node);
}

Result<void> SimDisk::make_directory(std::string_view path) {
  KVT_TRY(std::string name, state_->place(path));
  if (name.empty()) return {};
  if (const auto found = state_->names.find(name); found != state_->names.end()) {
    if (found->second->directory) return {};
    return error(Code::kExists, "a file has this name");
  }
  auto node = std::make_shared<SimNode>();
  node->directory = true;
  state_->change_names({"", std::move(name), std::move(node)});
  return {};
}

// Makes durable every change of a name in the directory, and earlier ones of the same names
// elsewhere (a rename between directories is one change).
Result<void> SimDisk::sync_directory(std::string_view path) {
  KVT_TRY(const std::string directory, normal_path(path));
  if (!directory.empty()) {
    const auto found = state_->names.find(directory);
    if (found == state_->names.end() || !found->second->directory)
      return error(Code::kNotFound, "no such directory");
  }
  std::vector<SimNameChange>& changes = state_->unsynced_names;
  if (!state_->count_sync()) {
    const bool any = std::any_of(changes.begin(), changes.end(), [&](const auto& change) {
      return touches_directory(change, directory);
    });
    state_->skipped = any ? SkippedSync::kMissing : SkippedSync::kIdle;
    state_->skipped_directory = "/" + directory;
    return {};
  }
  if (state_->skipped_directory == "/" + directory && state_->skipped == SkippedSync::kMissing)
    state_->skipped = SkippedSync::kCovered;
  std::vector<bool> durable(changes.size(), false);
  std::map<std::string_view, bool> wanted;
  for (std::size_t i = changes.size(); i-- > 0;) {
    const SimNameChange& change = changes[i];
    durable[i] = touches_directory(change, directory) ||
                 (!change.from.empty() && wanted.contains(change.from)) ||
                 (!change.to.empty() && wanted.contains(change.to));
    if (!durable[i]) continue;
    wanted[change.from] = wanted[change.to] = true;
  }
  wanted.clear();
  std::vector<SimNameChange> left;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (durable[i])
      apply_names(changes[i], &state_->durable_names);
    else
      left.push_back(std::move(changes[i]));
  }
  changes = std::move(left);
  return {};
}

Result<std::vector<std::string>> SimDisk::list(std::string_view directory) const {
  KVT_TRY(std::string prefix, normal_path(directory));
  if (!prefix.empty()) {
    const auto found = state_->names.find(prefix);
    if (found == state_->names.end()) return error(Code::kNotFound, "no such directory");
    if (!found->second->directory) return error(Code::kInvalid, "a file is no directory");
    prefix += '/';
  }
  std::vector<std::string> found;
  for (auto it = state_->names.lower_bound(prefix); it != state_->names.end(); ++it) {
    if (it->first.compare(0, prefix.size(), prefix) != 0) break;
    std::string rest = it->first.substr(prefix.size());
    if (rest.find('/') == std::string::npos) found.push_back(std::move(rest));
  }
  std::sort(found.begin(), found.end());
  return found;
}

Result<void> SimDisk::rename(std::string_view from, std::string_view to) {
  KVT_TRY(const SimNodePtr node, state_->file(from));
  KVT_TRY(std::string source, normal_path(from));
  KVT_TRY(std::string target, state_->place(to));
  if (target.empty()) return error(Code::kInvalid, "a file name is missing");
  if (source == target) return {};
  if (const auto found = state_->names.find(target);
      found != state_->names.end() && found->second->directory)
    return error(Code::kInvalid, "it is a directory");
  state_->change_names({std::move(source), std::move(target), node});
  return {};
}

Result<void> SimDisk::unlink(std::string_view path) { return state_->unlink(path, true); }
std::uint64_t SimDisk::used_bytes() const { return state_->used_bytes; }
std::uint64_t SimDisk::free_bytes() const {
  const std::uint64_t capacity = state_->options.capacity_bytes, used = state_->used_bytes;
  return capacity > used ? capacity - used : 0;
}

void SimDisk::crash() { state_->cut_power(); }

void SimDisk::rot(std::string_view path, std::uint64_t offset, std::uint32_t bit) {
  const Result<SimNodePtr> node = state_->file(path);
  if (!node) return;
  (*node)->now.flip_bit(offset, bit);
  (*node)->durable.flip_bit(offset, bit);
}

void SimDisk::set_capacity_bytes(std::uint64_t capacity_bytes) {
  state_->options.capacity_bytes = capacity_bytes;
}
void SimDisk::set_error_rates(std::uint32_t read_one_in, std::uint32_t write_one_in) {
  state_->options.read_error_one_in = read_one_in;
  state_->options.write_error_one_in = write_one_in;
}
void SimDisk::skip_sync(std::uint64_t nth) {
  state_->skip_sync_at = nth == UINT64_MAX ? UINT64_MAX : state_->syncs + nth;
  state_->skipped = SkippedSync::kNone;
  state_->skipped_directory.clear();
}
SkippedSync SimDisk::skipped_sync() const { return state_->skipped; }
std::uint64_t SimDisk::syncs() const { return state_->syncs; }
std::uint64_t SimDisk::power_cuts() const { return state_->power_cuts; }

}  // namespace kvtier
