// What a power cut leaves of a simulated disk. Every choice comes from the disk's one generator, in
// an order that depends on nothing but the operations before: a seed replays exactly.
//
// One cut in four keeps everything unsynced and one in four loses it all, since both ends find bugs
// that the mixture seldom reaches; the others decide for each change by itself.
#include <algorithm>
#include <set>

#include "tiers/sim_disk_state.h"

namespace kvtier {
namespace {

enum class Mood { kKeepAll, kLoseAll, kMixed };

Mood draw_mood(Random* random) {
  const std::uint64_t draw = random->below(4);
  return draw == 0 ? Mood::kKeepAll : draw == 1 ? Mood::kLoseAll : Mood::kMixed;
}

// Writes the part of a change whose sectors lie in [begin, end) of the file.
void write_part(const SimChange& change, std::uint64_t begin, std::uint64_t end, SimView* view) {
  const std::uint64_t change_end = change.offset + change.bytes.size();
  begin = std::max(begin, change.offset);
  end = std::min(end, change_end);
  if (begin >= end) return;
  view->write(begin, ByteSpan(change.bytes)
                         .subspan(static_cast<std::size_t>(begin - change.offset),
                                  static_cast<std::size_t>(end - begin)));
}

// Keeps what lies between two sector boundaries, or what lies outside them.
void tear(const SimChange& change, Random* random, SimView* view) {
  const std::uint64_t change_end = change.offset + change.bytes.size();
  const std::uint64_t first = change.offset / kSimSectorBytes;
  const std::uint64_t sectors = (change_end + kSimSectorBytes - 1) / kSimSectorBytes - first;
  std::uint64_t low = first + random->below(sectors + 1);
  std::uint64_t high = first + random->below(sectors + 1);
  if (low > high) std::swap(low, high);
  if (random->one_in(2)) {
    write_part(change, low * kSimSectorBytes, high * kSimSectorBytes, view);
  } else {
    write_part(change, 0, low * kSimSectorBytes, view);
    write_part(change, high * kSimSectorBytes, UINT64_MAX, view);
  }
}

// One aligned block of `change` lands on an aligned block of another unsynced write; false where
// there is none.
bool misdirect(const SimChange& change, const std::vector<SimChange>& all, Random* random,
               SimView* view) {
  const SimChange& other = all[static_cast<std::size_t>(random->below(all.size()))];
  if (&other == &change || other.resize) return false;
  const auto pick = [random](const SimChange& of, std::uint64_t* block) {
    const std::uint64_t first = align_up(of.offset, kDiskAlign) / kDiskAlign;
    const std::uint64_t end = (of.offset + of.bytes.size()) / kDiskAlign;
    if (end <= first) return false;
    *block = first + random->below(end - first);
    return true;
  };
  std::uint64_t from = 0, to = 0;
  if (!pick(change, &from) || !pick(other, &to) || from == to) return false;
  const auto begin = static_cast<std::size_t>(from * kDiskAlign - change.offset);
  view->write(to * kDiskAlign, ByteSpan(change.bytes).subspan(begin, kDiskAlign));
  return true;
}

void apply_change(const SimChange& change, const std::vector<SimChange>& all, Mood mood,
                  Random* random, SimView* view) {
  const std::uint64_t draw = mood == Mood::kKeepAll   ? 0
                             : mood == Mood::kLoseAll ? 31
                                                      : random->below(32);
  if (change.resize) {
    if (draw < 20) view->resize(change.offset);
    return;
  }
  const std::uint64_t end = change.offset + change.bytes.size();
  if (draw < 16) {
    view->write(change.offset, change.bytes);
  } else if (draw < 23) {
    tear(change, random, view);
  } else if (draw == 23 && misdirect(change, all, random, view)) {
    return;
  } else if (mood == Mood::kMixed && end > view->size_bytes() && random->one_in(2)) {
    view->resize(end);  // the size came to the disk, the bytes did not
  }
}

}  // namespace

void SimDisk::State::fail_sync(SimNode& node) {
  for (const SimChange& change : node.unsynced)
    apply_change(change, node.unsynced, Mood::kMixed, &random, &node.durable);
  node.unsynced.clear();
  node.differs = true;
}

void SimDisk::State::cut_file(SimNode& node) {
  const Mood mood = draw_mood(&random);
  SimView view = node.durable;
  for (const SimChange& change : node.unsynced)
    apply_change(change, node.unsynced, mood, &random, &view);
  node.durable = view;
  node.now = std::move(view);
  node.unsynced.clear();
  node.differs = false;
}

void SimDisk::State::cut_names() {
  const Mood mood = draw_mood(&random);
  std::set<std::string> stuck;  // names with a lost change: later changes of them are lost too
  for (const SimNameChange& change : unsynced_names) {
    const bool blocked = stuck.contains(change.from) || stuck.contains(change.to);
    const bool lost = mood == Mood::kLoseAll || (mood == Mood::kMixed && random.one_in(2));
    if (!blocked && !lost) {
      apply_names(change, &durable_names);
      continue;
    }
    if (!change.from.empty()) stuck.insert(change.from);
    if (!change.to.empty()) stuck.insert(change.to);
  }
  unsynced_names.clear();
  // What lay in a directory that is gone is gone; parents sort before their children.
  for (auto it = durable_names.begin(); it != durable_names.end();) {
    const std::size_t slash = it->first.rfind('/');
    const bool orphan =
        slash != std::string::npos && !durable_names.contains(it->first.substr(0, slash));
    it = orphan ? durable_names.erase(it) : std::next(it);
  }
}

void SimDisk::State::cut_power() {
  ++power_cuts;
  for (const auto& [name, node] : names) node->linked = false;
  cut_names();
  names = durable_names;
  used_bytes = 0;
  for (const auto& [name, node] : names) {
    node->linked = true;
    if (node->directory) continue;
    cut_file(*node);
    used_bytes += node->now.size_bytes();
  }
}

}  // namespace kvtier
